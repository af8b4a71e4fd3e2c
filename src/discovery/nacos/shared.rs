//! What sources of the same servers, namespace and login share: the token of the login, and the connection that changes are pushed over.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError, Weak};
use std::time::Duration;

use tokio::sync::mpsc::UnboundedSender;
use tokio::time::Instant;

use super::subscription::Subscription;
use crate::config::NacosConfig;
use crate::discovery::DiscoveryError;

/// After a login has failed, no other one is tried for so long.
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// Of this process, by what is asked of which servers.
static SHARED: LazyLock<Mutex<HashMap<String, Weak<Shared>>>> = LazyLock::new(Mutex::default);

/// What sources of the same servers, namespace and login share.
pub(super) struct Shared {
    key: String,
    /// Held while a login is made: the other sources wait for its token.
    login: tokio::sync::Mutex<Login>,
    /// The task that has the connection, while there is one.
    pub(super) pushes: Mutex<Option<UnboundedSender<Subscription>>>,
}

#[derive(Default)]
struct Login {
    token: Option<Token>,
    failed: Option<(Instant, String)>,
}

/// What a login gives.
#[derive(Clone)]
pub(super) struct Token {
    text: Arc<str>,
    /// When another one is asked for, before it ends.
    renewed: Instant,
    ends: Instant,
}

impl Token {
    pub(super) fn new(text: Arc<str>, valid: Duration) -> Self {
        let now = Instant::now();
        Self { text, renewed: now + valid - valid / 10, ends: now + valid }
    }
}

impl Shared {
    /// What others may have already.
    pub(super) fn of(config: &NacosConfig, bytes_max: usize) -> Arc<Self> {
        let NacosConfig { servers, namespace, username, password, ca, push_port, timeout, .. } = config;
        let password = password.as_ref().map(|password| password.reveal());
        let key =
            format!("{servers:?} {namespace} {username:?} {password:?} {ca:?} {push_port:?} {timeout:?} {bytes_max}");
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = shared.get(&key).and_then(Weak::upgrade) {
            return found;
        }
        let made = Arc::new(Self { key: key.clone(), login: Default::default(), pushes: Mutex::default() });
        shared.insert(key, Arc::downgrade(&made));
        made
    }

    /// A token that is valid, made by `log_in` where there is none. `refused` is one that a server did not take.
    pub(super) async fn token<F>(
        &self,
        refused: Option<&str>,
        log_in: impl FnOnce() -> F,
    ) -> Result<Arc<str>, DiscoveryError>
    where
        F: Future<Output = Result<Token, DiscoveryError>>,
    {
        let mut login = self.login.lock().await;
        let now = Instant::now();
        let known = login.token.clone().filter(|it| Some(&*it.text) != refused && now < it.ends);
        if let Some(token) = &known
            && now < token.renewed
        {
            return Ok(Arc::clone(&token.text));
        }
        let failed = match &login.failed {
            Some((when, what)) if now - *when < FAILED_PAUSE => Err(DiscoveryError::new(what.clone())),
            _ => Ok(()),
        };
        let made = match failed {
            Ok(()) => log_in().await,
            Err(error) => Err(error),
        };
        match (made, known) {
            (Ok(token), _) => {
                login.failed = None;
                Ok(Arc::clone(&login.token.insert(token).text))
            }
            (Err(error), known) => {
                if login.failed.as_ref().is_none_or(|(when, _)| now - *when >= FAILED_PAUSE) {
                    login.failed = Some((Instant::now(), error.to_string()));
                }
                // The one of before is good for a while still.
                known.map(|token| token.text).ok_or(error)
            }
        }
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        // Another may have its place by now.
        if shared.get(&self.key).is_some_and(|it| it.strong_count() == 0) {
            shared.remove(&self.key);
        }
    }
}
