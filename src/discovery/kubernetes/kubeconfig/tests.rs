use super::*;

const FILE: &str = r#"
apiVersion: v1
kind: Config
current-context: by-token
preferences: {}
clusters:
- name: one
  cluster:
    server: https://10.0.0.1:6443
    certificate-authority-data: UEVN
- name: far
  cluster:
    server: https://rancher.example/k8s/clusters/c-1
    extensions: [{ name: x, extension: { provider: minikube } }]
- name: careless
  cluster: { server: "https://10.0.0.2", insecure-skip-tls-verify: true }
contexts:
- { name: by-token, context: { cluster: one, user: token, namespace: shop } }
- { name: by-file, context: { cluster: far, user: file } }
- { name: by-password, context: { cluster: far, user: password } }
- { name: by-certificate, context: { cluster: far, user: certificate } }
- { name: by-command, context: { cluster: far, user: command } }
- { name: by-nobody, context: { cluster: far, user: "" } }
- { name: careless, context: { cluster: careless, user: token } }
- { name: lost, context: { cluster: nowhere, user: token } }
- { name: unknown, context: { cluster: one, user: unknown } }
- { name: half, context: { cluster: one, user: half } }
- { name: old, context: { cluster: one, user: old } }
- { name: other, context: { cluster: one, user: other } }
users:
- { name: token, user: { token: abc, tokenFile: never } }
- { name: file, user: { tokenFile: token } }
- { name: password, user: { username: me, password: secret } }
- { name: certificate, user: { client-certificate-data: Q0VSVA==, client-key-data: S0VZ } }
- name: command
  user:
    exec: { apiVersion: client.authentication.k8s.io/v1beta1, command: aws, args: [eks, get-token], env: null, interactiveMode: IfAvailable }
- { name: half, user: { client-certificate-data: Q0VSVA== } }
- { name: old, user: { auth-provider: { name: gcp } } }
- { name: other, user: { token: abc, as: root } }
"#;

fn of(context: &str) -> Result<Described, String> {
    described(FILE.as_bytes(), Path::new("/home/me/.kube"), Some(context))
}

#[test]
fn a_context_leads_to_a_cluster_and_to_who_asks() {
    let it = described(FILE.as_bytes(), Path::new("/"), None).unwrap();
    assert_eq!(
        (it.url.to_string(), &*it.namespace, it.ca),
        ("https://10.0.0.1:6443/".into(), "shop", Some(b"PEM".into()))
    );
    assert!(matches!(it.login, DescribedLogin::Token(token) if token.reveal() == "abc"));
    let it = of("by-file").unwrap();
    assert_eq!((it.url.base(), &*it.namespace, it.ca), ("/k8s/clusters/c-1", "default", None));
    assert!(matches!(it.login, DescribedLogin::TokenFile(path) if path == Path::new("/home/me/.kube/token")));
    assert!(matches!(of("by-password").unwrap().login, DescribedLogin::Password(name, _) if name == "me"));
    let it = of("by-certificate").unwrap();
    assert_eq!(it.identity, Some((b"CERT".into(), b"KEY".into())));
    assert!(matches!(it.login, DescribedLogin::None));
    assert!(matches!(of("by-command").unwrap().login, DescribedLogin::Command(_)));
    assert!(matches!(of("by-nobody").unwrap().login, DescribedLogin::None));
}

#[test]
fn what_leads_nowhere_or_is_not_supported_is_told() {
    for (context, what) in [
        ("nothing", "it has no context \"nothing\""),
        ("lost", "it has no cluster \"nowhere\""),
        ("unknown", "it has no user \"unknown\""),
        ("half", "a client certificate takes a key"),
        ("careless", "isobar does not support insecure-skip-tls-verify: name the authority instead"),
        ("old", "isobar does not support auth-provider: Kubernetes has `exec` in its place"),
        ("other", "isobar does not support as"),
    ] {
        assert_eq!(of(context).err().unwrap(), what);
    }
    let error = |text: &str| described(text.as_bytes(), Path::new("/"), None).err().unwrap();
    assert_eq!(error("{}"), "it has no current context, and `context` names none");
    assert_eq!(error("clusters: null\nusers: ~\ncontexts: []\ncurrent-context: a"), "it has no context \"a\"");
    // JSON is YAML.
    assert_eq!(error(r#"{"clusters": [], "current-context": "a"}"#), "it has no context \"a\"");
    // What it stumbles over is not shown.
    let secret = error("users:\n- name: a\n  user: { token: [secret] }\n");
    assert!(secret.starts_with("it is no kubeconfig: line 3") && !secret.contains("secret"), "{secret}");
    let bomb = format!("a: &a [x,x]\n{}", (0..40).map(|n| format!("b{n}: &b{n} [*a,*a,*a,*a]\n")).collect::<String>());
    assert!(!error(&bomb).contains("x,x"));
    assert!(!error("\u{0}").is_empty());
}
