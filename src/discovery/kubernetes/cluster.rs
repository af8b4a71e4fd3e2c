//! The API server of a cluster: where it is, how it is believed, and by which login it is asked.
//!
//! In a cluster, all that is in the environment and in the files of the pod's ServiceAccount. Outside, a kubeconfig says it. Both are read again
//! after each failure, and the file of a token before each request: tokens and authorities are replaced while isobar runs.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{HeaderValue, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;

use super::described::{Described, DescribedLogin, contents, pem};
use super::kubeconfig;
use super::login_command;
use crate::config::{HttpUrl, KubernetesConfig};
use crate::discovery::DiscoveryError;
use crate::discovery::asked::Aside;
use crate::http_client::{Fetch, FetchLimits, To, Trust};

/// Where a pod finds what its ServiceAccount is.
const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// Bytes of a file with a token.
const TOKEN_BYTES_MAX: usize = 64 * 1024;

/// An API server that is asked.
pub(super) struct Cluster {
    config: Arc<KubernetesConfig>,
    bytes_max: usize,
    open: Option<Open>,
    describing: Aside<Described>,
    trusting: Aside<Trust>,
    reading: Aside<HeaderValue>,
}

/// One that is known.
struct Open {
    url: HttpUrl,
    namespace: Arc<str>,
    client: Fetch,
    login: Login,
}

/// What is sent as a login.
enum Login {
    None,
    Header(HeaderValue),
    /// A token in a file, which is another from time to time.
    File(PathBuf),
}

impl Cluster {
    pub(super) fn new(config: Arc<KubernetesConfig>, bytes_max: usize) -> Self {
        let (describing, trusting, reading) = (Aside::new(), Aside::new(), Aside::new());
        Self { config, bytes_max, open: None, describing, trusting, reading }
    }

    /// Asks for the EndpointSlices of the namespace, and gives the answer when its head has come. A login that has expired costs another one and
    /// no failure.
    pub(super) async fn get(&mut self, query: &str) -> Result<Response<Incoming>, DiscoveryError> {
        let was_open = self.open.is_some();
        let response = self.get_once(query).await?;
        if response.status() == StatusCode::UNAUTHORIZED && was_open {
            self.open = None;
            return self.get_once(query).await;
        }
        Ok(response)
    }

    /// The rest of an answer.
    pub(super) async fn read(&mut self, response: Response<Incoming>) -> Result<Response<Bytes>, DiscoveryError> {
        let Some(open) = &self.open else { return Err(DiscoveryError::new("its connection is gone")) };
        Ok(open.client.read(response).await?)
    }

    /// What was known is read again before the next request.
    pub(super) fn forget(&mut self) {
        self.open = None;
    }

    /// The namespace that is asked for, once that is known.
    pub(super) fn namespace(&self) -> &str {
        self.open.as_ref().map_or("", |open| &open.namespace)
    }

    async fn get_once(&mut self, query: &str) -> Result<Response<Incoming>, DiscoveryError> {
        if self.open.is_none() {
            self.open = Some(self.open().await?);
        }
        let time = self.config.timeout;
        let Some(Open { url, namespace, client, login }) = &self.open else {
            return Err(DiscoveryError::new("no API server is known"));
        };
        let path = format!("/apis/discovery.k8s.io/v1/namespaces/{namespace}/endpointslices");
        let mut request = Request::get(format!("http://{}{}{path}?{query}", url.authority(), url.base()))
            .header("accept", "application/json")
            .header("user-agent", concat!("isobar/", env!("CARGO_PKG_VERSION")));
        let client = client.clone();
        match login {
            Login::None => {}
            Login::Header(value) => request = request.header("authorization", value),
            Login::File(path) => {
                let path = path.clone();
                request = request.header("authorization", self.reading.within(time, move || token_of(&path)).await?);
            }
        }
        let answer = client.begin(request.body(Full::default())?).await;
        if answer.is_err() {
            self.open = None;
        }
        Ok(answer?)
    }

    /// Finds out where it is and by which login it is asked.
    async fn open(&mut self) -> Result<Open, DiscoveryError> {
        let (config, time) = (Arc::clone(&self.config), self.config.timeout);
        let described = self.describing.within(time, move || describe(&config)).await?;
        let Described { url, namespace, ca, mut identity, login } = described;
        let login = match login {
            DescribedLogin::None => Login::None,
            DescribedLogin::Token(token) => Login::Header(bearer(token.reveal())?),
            DescribedLogin::TokenFile(path) => Login::File(path),
            DescribedLogin::Password(user, password) => {
                let both = STANDARD.encode(format!("{user}:{}", password.reveal()));
                Login::Header(sensitive(&format!("Basic {both}"))?)
            }
            DescribedLogin::Command(command) => {
                let credential = login_command::run(&command, time).await?;
                identity = credential.identity.or(identity);
                credential.token.map_or(Ok(Login::None), |token| bearer(token.reveal()).map(Login::Header))?
            }
        };
        if !url.tls && !url.is_loopback() && !matches!(login, Login::None) {
            return Err(DiscoveryError::new(format!("{url}: a login would be sent in the clear")));
        }
        let tls = match url.tls {
            true => Some(self.trusting.within(time, move || trust(ca.as_deref(), identity)).await?),
            false => None,
        };
        let to = To::Server { host: Arc::clone(&url.host), port: url.port, tls };
        let client = Fetch::new(to, FetchLimits { time, body: self.bytes_max });
        let namespace = self.config.namespace.clone().unwrap_or(namespace);
        Ok(Open { url, namespace, client, login })
    }
}

fn trust(ca: Option<&[u8]>, identity: Option<(Vec<u8>, Vec<u8>)>) -> Result<Trust, DiscoveryError> {
    let identity = identity.as_ref().map(|(certificate, key)| (&certificate[..], &key[..]));
    Ok(Trust::with_identity(ca, identity)?)
}

fn describe(config: &KubernetesConfig) -> Result<Described, DiscoveryError> {
    match &config.kubeconfig {
        Some(path) => kubeconfig::read(path, config.context.as_deref()),
        None => in_cluster(|name| std::env::var(name).ok(), Path::new(SERVICE_ACCOUNT)),
    }
}

/// What a pod knows of its cluster, by its environment and the files of its ServiceAccount.
fn in_cluster(variable: impl Fn(&str) -> Option<String>, folder: &Path) -> Result<Described, DiscoveryError> {
    let outside =
        || DiscoveryError::new("KUBERNETES_SERVICE_HOST is not set: outside of a cluster, `kubeconfig` is needed");
    let host = variable("KUBERNETES_SERVICE_HOST").filter(|host| !host.is_empty()).ok_or_else(outside)?;
    let port = variable("KUBERNETES_SERVICE_PORT").map_or(Ok(443), |port| port.parse());
    let port = port.map_err(|_| DiscoveryError::new("KUBERNETES_SERVICE_PORT is no port"))?;
    let ca = pem(&folder.join("ca.crt"))?;
    // It is needed only where the configuration says of none.
    let namespace = contents(&folder.join("namespace"), 256).unwrap_or_default();
    let namespace = String::from_utf8(namespace).unwrap_or_default();
    let namespace = namespace.trim();
    Ok(Described {
        url: HttpUrl { tls: true, host: host.into(), port, target: "/".into() },
        namespace: if namespace.is_empty() { "default".into() } else { namespace.into() },
        ca: Some(ca),
        identity: None,
        login: DescribedLogin::TokenFile(folder.join("token")),
    })
}

fn token_of(path: &Path) -> Result<HeaderValue, DiscoveryError> {
    let text = contents(path, TOKEN_BYTES_MAX)?;
    let text = std::str::from_utf8(&text).unwrap_or_default().trim();
    match text {
        "" => Err(DiscoveryError::new(format!("{}: there is no token in it", path.display()))),
        text => bearer(text),
    }
}

fn bearer(token: &str) -> Result<HeaderValue, DiscoveryError> {
    sensitive(&format!("Bearer {}", token.trim()))
}

fn sensitive(text: &str) -> Result<HeaderValue, DiscoveryError> {
    let mut value =
        HeaderValue::try_from(text).map_err(|_| DiscoveryError::new("its login cannot be sent in a header"))?;
    value.set_sensitive(true);
    Ok(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_knows_its_cluster() {
        let folder = std::env::temp_dir().join(format!("isobar-pod-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let variable =
            |host: &'static str| move |name: &str| Some(if name.ends_with("HOST") { host } else { "6443" }.to_owned());
        let error = |result: Result<Described, DiscoveryError>| result.err().unwrap().to_string();
        assert!(error(in_cluster(|_| None, &folder)).starts_with("KUBERNETES_SERVICE_HOST is not set"));
        assert!(error(in_cluster(variable("10.96.0.1"), &folder)).contains("ca.crt"));
        for (name, text) in [("ca.crt", "PEM"), ("namespace", "shop\n"), ("token", "a.b.c\n")] {
            std::fs::write(folder.join(name), text).unwrap();
        }
        let described = in_cluster(variable("fd00::1"), &folder).unwrap();
        assert_eq!((described.url.to_string(), &*described.namespace), ("https://[fd00::1]:6443/".into(), "shop"));
        let DescribedLogin::TokenFile(token) = described.login else { panic!("no token") };
        assert_eq!(token_of(&token).unwrap(), "Bearer a.b.c");
        std::fs::write(&token, " \n").unwrap();
        assert!(token_of(&token).unwrap_err().to_string().ends_with("there is no token in it"));
        std::fs::write(&token, "a\nb").unwrap();
        assert_eq!(token_of(&token).unwrap_err().to_string(), "its login cannot be sent in a header");
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
