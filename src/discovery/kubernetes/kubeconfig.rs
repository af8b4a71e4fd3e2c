//! A [kubeconfig](https://kubernetes.io/docs/reference/config-api/kubeconfig.v1/): which cluster a context means, and which login.
//!
//! What would weaken TLS, or is for a terminal, is refused with a word and not passed over.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::described::{Described, DescribedLogin, contents, pem};
use super::login_command::{ExecConfig, LoginCommand};
use crate::config::{HttpUrl, Secret};
use crate::discovery::DiscoveryError;

const BYTES_MAX: usize = 1024 * 1024;

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct Kubeconfig {
    current_context: Option<String>,
    clusters: Option<Vec<NamedCluster>>,
    contexts: Option<Vec<NamedContext>>,
    users: Option<Vec<NamedUser>>,
}

#[derive(Deserialize)]
struct NamedCluster {
    name: String,
    cluster: ClusterEntry,
}

#[derive(Deserialize)]
struct NamedContext {
    name: String,
    context: ContextEntry,
}

#[derive(Deserialize)]
struct NamedUser {
    name: String,
    user: Option<UserEntry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ClusterEntry {
    server: String,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
    #[serde(default)]
    insecure_skip_tls_verify: bool,
    tls_server_name: Option<String>,
    proxy_url: Option<String>,
}

#[derive(Deserialize)]
struct ContextEntry {
    cluster: String,
    user: Option<String>,
    namespace: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
struct UserEntry {
    token: Option<String>,
    // These are not in kebab case.
    #[serde(rename = "tokenFile")]
    token_file: Option<String>,
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
    client_key: Option<String>,
    client_key_data: Option<String>,
    username: Option<String>,
    password: Option<String>,
    exec: Option<ExecConfig>,
    auth_provider: Option<serde::de::IgnoredAny>,
    #[serde(rename = "as")]
    impersonated: Option<String>,
}

/// Reads a kubeconfig, and what it names. `context` is the current one where there is none.
pub(super) fn read(path: &Path, context: Option<&str>) -> Result<Described, DiscoveryError> {
    let text = contents(path, BYTES_MAX)?;
    let said = |what: String| DiscoveryError::new(format!("{}: {what}", path.display()));
    described(&text, path.parent().unwrap_or(Path::new("")), context).map_err(said)
}

fn described(text: &[u8], folder: &Path, context: Option<&str>) -> Result<Described, String> {
    let text = std::str::from_utf8(text).map_err(|_| "it is not UTF-8")?;
    // A reader of YAML shows what it stumbles over, which may be a token.
    let file: Kubeconfig = serde_saphyr::from_str(text).map_err(|error| match error.location() {
        Some(at) => format!("it is no kubeconfig: line {}, column {}", at.line(), at.column()),
        None => "it is no kubeconfig".to_owned(),
    })?;
    let current = file.current_context.as_deref().filter(|name| !name.is_empty());
    let name = context.or(current).ok_or("it has no current context, and `context` names none")?;
    let contexts = file.contexts.unwrap_or_default();
    let context =
        contexts.into_iter().find(|it| it.name == name).ok_or_else(|| format!("it has no context {name:?}"))?;
    let ContextEntry { cluster, user, namespace } = context.context;
    let clusters = file.clusters.unwrap_or_default();
    let entry = clusters.into_iter().find(|it| it.name == cluster);
    let entry = entry.ok_or_else(|| format!("it has no cluster {cluster:?}"))?.cluster;
    let users = file.users.unwrap_or_default();
    let user = match user.filter(|user| !user.is_empty()) {
        None => UserEntry::default(),
        Some(user) => {
            let found = users.into_iter().find(|it| it.name == user);
            found.ok_or_else(|| format!("it has no user {user:?}"))?.user.unwrap_or_default()
        }
    };
    is_supported(&entry, &user)?;
    let url = HttpUrl::parse(&entry.server).ok_or_else(|| format!("{:?} is not a URL", entry.server))?;
    let from = Files(folder);
    let ca = from.data_or_file(entry.certificate_authority_data.as_ref(), entry.certificate_authority.as_ref())?;
    let certificate = from.data_or_file(user.client_certificate_data.as_ref(), user.client_certificate.as_ref())?;
    let key = from.data_or_file(user.client_key_data.as_ref(), user.client_key.as_ref())?;
    let identity = match (certificate, key) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err("a client certificate takes a key".into()),
    };
    let namespace = namespace.filter(|it| !it.is_empty()).unwrap_or_else(|| "default".into());
    let login = login(user, folder, &entry)?;
    Ok(Described { url, namespace: namespace.into(), ca, identity, login })
}

fn is_supported(cluster: &ClusterEntry, user: &UserEntry) -> Result<(), String> {
    let refused = [
        (cluster.insecure_skip_tls_verify, "insecure-skip-tls-verify: name the authority instead"),
        (cluster.tls_server_name.is_some(), "tls-server-name"),
        (cluster.proxy_url.is_some(), "proxy-url"),
        (user.auth_provider.is_some(), "auth-provider: Kubernetes has `exec` in its place"),
        (user.impersonated.is_some(), "as"),
    ];
    match refused.into_iter().find(|(is_there, _)| *is_there) {
        Some((_, what)) => Err(format!("isobar does not support {what}")),
        None => Ok(()),
    }
}

/// The login. A token comes before its file, and both before a command, as `kubectl` has it.
fn login(user: UserEntry, folder: &Path, cluster: &ClusterEntry) -> Result<DescribedLogin, String> {
    let is_given = |text: &String| !text.is_empty();
    if let Some(token) = user.token.filter(is_given) {
        return Ok(DescribedLogin::Token(Secret::from(token.as_str())));
    }
    if let Some(file) = user.token_file.filter(is_given) {
        return Ok(DescribedLogin::TokenFile(folder.join(file)));
    }
    if let (Some(name), Some(password)) = (user.username, user.password) {
        return Ok(DescribedLogin::Password(name, Secret::from(password.as_str())));
    }
    let Some(exec) = user.exec else { return Ok(DescribedLogin::None) };
    let ca = cluster.certificate_authority_data.as_deref();
    LoginCommand::new(exec, folder, &cluster.server, ca).map(|command| DescribedLogin::Command(Box::new(command)))
}

/// Where files are that have no absolute path.
struct Files<'a>(&'a Path);

impl Files<'_> {
    fn data_or_file(&self, data: Option<&String>, file: Option<&String>) -> Result<Option<Vec<u8>>, String> {
        if let Some(data) = data.filter(|data| !data.is_empty()) {
            return STANDARD
                .decode(data.trim())
                .map(Some)
                .map_err(|_| "what it has of a certificate or key is no base64".into());
        }
        let path = file.filter(|file| !file.is_empty()).map(|file| self.0.join(PathBuf::from(file)));
        path.map(|path| pem(&path)).transpose().map_err(|error| error.to_string())
    }
}

#[cfg(test)]
mod tests;
