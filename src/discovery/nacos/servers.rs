//! Nacos's servers over HTTP: the list of instances, and the login.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use serde::Deserialize;

use super::shared::{Shared, Token};
use crate::config::{HttpUrl, NacosConfig};
use crate::discovery::DiscoveryError;
use crate::discovery::asked::{Server, TlsFiles, encoded, refusal};

/// How long a token is valid whose answer does not say so.
const TOKEN_TTL: u64 = 300;
/// No token is believed to be valid for longer.
const TOKEN_TTL_MAX: u64 = 24 * 3600;

/// Which API of Nacos lists instances.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Api {
    /// Of versions 1 to 3.
    V1,
    /// Of version 3, which may have the older one switched off.
    V3,
}

/// The servers, one of which is asked at a time.
pub(super) struct Servers {
    config: Arc<NacosConfig>,
    servers: Vec<Server>,
    /// The one that has answered last.
    current: usize,
    api: Api,
    pub(super) shared: Arc<Shared>,
}

impl Servers {
    pub(super) fn new(config: &Arc<NacosConfig>, bytes_max: usize) -> Self {
        let tls = || TlsFiles { ca: config.ca.clone(), identity: None };
        let servers = config.servers.iter().map(|url| Server::new(url.clone(), bytes_max, tls())).collect();
        let shared = Shared::of(config, bytes_max);
        Self { config: Arc::clone(config), servers, current: 0, api: Api::V1, shared }
    }

    /// Asks for the list, one server after the other, beginning with the one that has answered last.
    pub(super) async fn list(&mut self) -> Result<Bytes, DiscoveryError> {
        let mut errors = Vec::new();
        for _ in 0..self.servers.len() {
            match self.list_here().await {
                Ok(body) => return Ok(body),
                Err(error) => errors.push((self.config.servers[self.current].authority(), error)),
            }
            self.current = (self.current + 1) % self.servers.len();
        }
        match &mut errors[..] {
            [] => Err(DiscoveryError::new("there is no server to ask")),
            [_] => Err(errors.remove(0).1),
            all => {
                let all: Vec<_> = all.iter().map(|(at, error)| format!("{at}: {error}")).collect();
                Err(DiscoveryError::new(all.join("; ")))
            }
        }
    }

    async fn list_here(&mut self) -> Result<Bytes, DiscoveryError> {
        let response = self.list_by(self.api).await?;
        let status = response.status();
        if status == StatusCode::OK {
            return Ok(response.into_body());
        }
        if status.is_client_error() {
            // A version of Nacos that has not this API, or not any more.
            let other = if self.api == Api::V1 { Api::V3 } else { Api::V1 };
            let by_other = self.list_by(other).await?;
            if by_other.status() == StatusCode::OK {
                self.api = other;
                return Ok(by_other.into_body());
            }
        }
        Err(refusal(status, response.body()))
    }

    /// Asks, with a login where there is one to be made. A token that has expired costs another login and no failure.
    async fn list_by(&mut self, api: Api) -> Result<Response<Bytes>, DiscoveryError> {
        let token = self.token(self.current, None).await?;
        let response = self.get(api, token.as_deref()).await?;
        let is_refused = matches!(response.status(), StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN);
        match token {
            Some(token) if is_refused => {
                let token = self.token(self.current, Some(&token)).await?;
                self.get(api, token.as_deref()).await
            }
            _ => Ok(response),
        }
    }

    async fn get(&mut self, api: Api, token: Option<&str>) -> Result<Response<Bytes>, DiscoveryError> {
        let NacosConfig { service, group, namespace, clusters, timeout, .. } = &*self.config;
        let url = &self.config.servers[self.current];
        let clusters = clusters.join(",");
        let (path, name, key_of_clusters) = match api {
            Api::V1 => ("/v1/ns/instance/list", self.config.grouped_name(), "clusters"),
            Api::V3 => ("/v3/client/ns/instance/list", service.to_string(), "clusterName"),
        };
        let mut target = format!(
            "{path}?serviceName={}&groupName={}&namespaceId={}&healthyOnly=false",
            encoded(&name),
            encoded(group),
            encoded(namespace)
        );
        for (key, value) in [(key_of_clusters, Some(&*clusters).filter(|it| !it.is_empty())), ("accessToken", token)] {
            if let Some(value) = value {
                target += &format!("&{key}={}", encoded(value));
            }
        }
        let request = request(Method::GET, url, &target, Bytes::new())?;
        self.servers[self.current].ask(request, *timeout).await
    }

    /// The token of the login, if there is one to be made. `refused` is one that is not valid any more.
    pub(super) async fn token(
        &mut self,
        server: usize,
        refused: Option<&str>,
    ) -> Result<Option<Arc<str>>, DiscoveryError> {
        if self.config.username.is_none() {
            return Ok(None);
        }
        let shared = Arc::clone(&self.shared);
        shared.token(refused, || self.log_in(server)).await.map(Some)
    }

    async fn log_in(&mut self, server: usize) -> Result<Token, DiscoveryError> {
        let mut response = self.log_in_at(server, "/v1/auth/login").await?;
        let is_elsewhere = |status| {
            matches!(status, StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED | StatusCode::GONE)
                || status == StatusCode::NOT_IMPLEMENTED
        };
        if is_elsewhere(response.status()) {
            response = self.log_in_at(server, "/v3/auth/user/login").await?;
        }
        if response.status() != StatusCode::OK {
            // What it says may have the password in it.
            return Err(DiscoveryError::new(format!("its login answered {}", response.status().as_u16())));
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct LoggedIn {
            access_token: String,
            #[serde(default)]
            token_ttl: Option<u64>,
        }
        let answer: LoggedIn = serde_json::from_slice(response.body())
            .map_err(|_| DiscoveryError::new("its login has no token: this is not Nacos's API"))?;
        let ttl = answer.token_ttl.unwrap_or(TOKEN_TTL).clamp(1, TOKEN_TTL_MAX);
        Ok(Token::new(answer.access_token.into(), Duration::from_secs(ttl)))
    }

    async fn log_in_at(&mut self, server: usize, path: &str) -> Result<Response<Bytes>, DiscoveryError> {
        let NacosConfig { username, password, timeout, .. } = &*self.config;
        let (username, password) = (username.as_deref().unwrap_or_default(), password.as_ref().map(|it| it.reveal()));
        let body = format!("username={}&password={}", encoded(username), encoded(password.unwrap_or_default()));
        let request = request(Method::POST, &self.config.servers[server], path, body.into())?;
        self.servers[server].ask(request, *timeout).await
    }
}

fn request(method: Method, url: &HttpUrl, target: &str, body: Bytes) -> Result<Request<Full<Bytes>>, DiscoveryError> {
    // The context path that Nacos has by default.
    let base = if url.base().is_empty() { "/nacos" } else { url.base() };
    let request = Request::builder()
        .method(method)
        .uri(format!("http://{}{base}{target}", url.authority()))
        .header("accept", "application/json")
        .header("content-type", "application/x-www-form-urlencoded")
        .header("user-agent", concat!("isobar/", env!("CARGO_PKG_VERSION")));
    Ok(request.body(Full::from(body))?)
}
