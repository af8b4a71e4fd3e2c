//! A command that gives the login, as clouds have it: `exec` of a kubeconfig.
//!
//! It is run without a terminal, within a time, and what it says has a limit. What it says holds until the API server does not believe it any more,
//! so that its date is not needed.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use tokio::io::{AsyncReadExt, sink};
use tokio::process::Command;
use tokio::time::timeout;

use crate::config::Secret;
use crate::discovery::DiscoveryError;

/// Bytes of a credential, and of what is told of a failure.
const CREDENTIAL_BYTES_MAX: u64 = 256 * 1024;
const COMPLAINT_BYTES_MAX: u64 = 4096;

/// `exec` of a user, as the kubeconfig has it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct ExecConfig {
    api_version: String,
    command: String,
    args: Option<Vec<String>>,
    env: Option<Vec<Variable>>,
    #[serde(default)]
    provide_cluster_info: bool,
    interactive_mode: Option<String>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    value: String,
}

/// A command that can be run.
pub(super) struct LoginCommand {
    program: PathBuf,
    arguments: Vec<String>,
    variables: Vec<(String, String)>,
}

/// What it has said.
#[derive(Default)]
pub(super) struct Credential {
    pub(super) token: Option<Secret>,
    pub(super) identity: Option<(Vec<u8>, Vec<u8>)>,
}

impl LoginCommand {
    /// `server` and `ca` are of the cluster, for a command that wants to know it.
    pub(super) fn new(exec: ExecConfig, folder: &Path, server: &str, ca: Option<&str>) -> Result<Self, String> {
        if !exec.api_version.starts_with("client.authentication.k8s.io/v1") {
            return Err(format!("exec: {:?} is no version of credentials", exec.api_version));
        }
        if exec.interactive_mode.as_deref() == Some("Always") {
            return Err(format!("exec: {:?} wants a terminal, and there is none", exec.command));
        }
        let mut spec = json!({ "interactive": false });
        if exec.provide_cluster_info {
            spec["cluster"] = json!({ "server": server, "certificate-authority-data": ca });
        }
        let info = json!({ "apiVersion": exec.api_version, "kind": "ExecCredential", "spec": spec }).to_string();
        let mut variables: Vec<_> = exec.env.unwrap_or_default().into_iter().map(|it| (it.name, it.value)).collect();
        variables.push(("KUBERNETES_EXEC_INFO".into(), info));
        // A bare name is looked for where programs are.
        let program = match exec.command.contains('/') {
            true => folder.join(&exec.command),
            false => PathBuf::from(&exec.command),
        };
        Ok(Self { program, arguments: exec.args.unwrap_or_default(), variables })
    }
}

/// Runs a command, within `time`. It ends with this.
pub(super) async fn run(command: &LoginCommand, time: Duration) -> Result<Credential, DiscoveryError> {
    let LoginCommand { program, arguments, variables } = command;
    let said = |what: String| DiscoveryError::new(format!("the command {}: {what}", program.display()));
    let mut process = Command::new(program);
    process.args(arguments).envs(variables.iter().map(|(name, value)| (name, value)));
    process.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = process.spawn().map_err(|error| said(error.to_string()))?;
    let (mut output, mut errors) = (child.stdout.take(), child.stderr.take());
    let running = async {
        let (credential, complaint) =
            tokio::join!(first(output.as_mut(), CREDENTIAL_BYTES_MAX), first(errors.as_mut(), COMPLAINT_BYTES_MAX));
        (child.wait().await, credential, complaint)
    };
    let (status, credential, complaint) =
        timeout(time, running).await.map_err(|_| said(format!("it has not ended within {time:?}")))?;
    let status = status.map_err(|error| said(error.to_string()))?;
    if !status.success() {
        let complaint = String::from_utf8_lossy(&complaint);
        let line = complaint.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
        let line: String = line.chars().filter(|c| !c.is_control()).take(200).collect();
        return Err(said(format!("{status}: {line}")));
    }
    read(&credential).map_err(|what| said(what.into()))
}

/// The first bytes of what is read to its end.
async fn first<R: AsyncReadExt + Unpin>(from: Option<&mut R>, most: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        let _ = (&mut *from).take(most).read_to_end(&mut bytes).await;
        let _ = tokio::io::copy(from, &mut sink()).await;
    }
    bytes
}

fn read(output: &[u8]) -> Result<Credential, &'static str> {
    #[derive(Deserialize)]
    struct ExecCredential {
        status: Option<Status>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Status {
        token: Option<String>,
        client_certificate_data: Option<String>,
        client_key_data: Option<String>,
    }
    let credential: ExecCredential = serde_json::from_slice(output).map_err(|_| "what it says is no credential")?;
    let status = credential.status.ok_or("its credential says nothing")?;
    let identity = match (status.client_certificate_data, status.client_key_data) {
        (Some(certificate), Some(key)) => Some((certificate.into_bytes(), key.into_bytes())),
        _ => None,
    };
    let token = status.token.filter(|token| !token.is_empty()).map(|token| Secret::from(token.as_str()));
    match (&token, &identity) {
        (None, None) => Err("its credential has neither a token nor a certificate with its key"),
        _ => Ok(Credential { token, identity }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shell(script: &str) -> LoginCommand {
        let exec: ExecConfig = serde_json::from_value(json!({
            "apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": ["-c", script],
            "env": [{ "name": "WORD", "value": "given" }], "provideClusterInfo": true, "interactiveMode": "IfAvailable",
        }))
        .unwrap();
        LoginCommand::new(exec, Path::new("/"), "https://10.0.0.1:6443", Some("Q0E=")).unwrap()
    }

    async fn failure(script: &str, time: Duration) -> String {
        run(&shell(script), time).await.err().unwrap().to_string()
    }

    const TIME: Duration = Duration::from_secs(10);

    #[tokio::test]
    async fn a_command_says_a_token_or_a_certificate() {
        let script = r#"echo "{\"kind\":\"ExecCredential\",\"status\":{\"token\":\"$WORD\",\"expirationTimestamp\":\"2026-01-01T00:00:00Z\"}}""#;
        let credential = run(&shell(script), TIME).await.unwrap();
        assert_eq!(credential.token.unwrap().reveal(), "given");
        let script = r#"echo '{"status":{"clientCertificateData":"CERT","clientKeyData":"KEY"}}'"#;
        let credential = run(&shell(script), TIME).await.unwrap();
        assert_eq!(credential.identity.unwrap(), (b"CERT".to_vec(), b"KEY".to_vec()));
        // It is told what it is run for.
        let script = r#"case $KUBERNETES_EXEC_INFO in *'"interactive":false'*) ;; *) exit 1;; esac
            case $KUBERNETES_EXEC_INFO in *'https://10.0.0.1:6443'*) ;; *) exit 2;; esac
            head -c 100000 /dev/zero >&2; echo '{"status":{"token":"t"}}'"#;
        assert!(run(&shell(script), TIME).await.is_ok());
    }

    #[tokio::test]
    async fn a_command_that_fails_or_hangs_says_so_without_what_it_has_said() {
        assert_eq!(
            failure("echo; echo 'the session has ended' >&2; echo secret; exit 3", TIME).await,
            "the command sh: exit status: 3: the session has ended"
        );
        let short = Duration::from_millis(100);
        assert_eq!(failure("sleep 60", short).await, "the command sh: it has not ended within 100ms");
        for (script, what) in [
            ("echo token-of-mine", "what it says is no credential"),
            ("cat /dev/zero | head -c 3000000", "what it says is no credential"),
            ("echo '{}'", "its credential says nothing"),
            ("echo '{\"status\":{}}'", "its credential has neither a token nor a certificate with its key"),
        ] {
            assert_eq!(failure(script, TIME).await, format!("the command sh: {what}"));
        }
        let missing: ExecConfig = serde_json::from_value(
            json!({ "apiVersion": "client.authentication.k8s.io/v1beta1", "command": "./no-such-command" }),
        )
        .unwrap();
        let missing = LoginCommand::new(missing, Path::new("/nowhere"), "", None).unwrap();
        let error = run(&missing, TIME).await.err().unwrap().to_string();
        assert!(error.starts_with("the command /nowhere/./no-such-command: No such file"), "{error}");
    }

    #[test]
    fn what_cannot_be_run_here_is_refused() {
        for (version, mode, what) in [
            ("client.authentication.k8s.io/v1", "Always", "exec: \"aws\" wants a terminal, and there is none"),
            ("v1", "Never", "exec: \"v1\" is no version of credentials"),
        ] {
            let exec = json!({ "apiVersion": version, "command": "aws", "interactiveMode": mode });
            let exec: ExecConfig = serde_json::from_value(exec).unwrap();
            assert_eq!(LoginCommand::new(exec, Path::new("/"), "", None).err().unwrap(), what);
        }
    }
}
