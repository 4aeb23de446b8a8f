//! What the fake asks callers for: nothing, a password, or a token of its own token server.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use base64::Engine as _;
use http::{Response, StatusCode};

use super::lock;
use super::reply::{Body, error, full};

/// What a caller must show.
#[derive(Clone, Debug, Default)]
pub enum Login {
    /// Nothing.
    #[default]
    None,
    /// User name and password with each request.
    Basic {
        /// User name.
        username: String,
        /// Password.
        password: String,
    },
    /// A token of its token server (`/token`), for which user name and password, or the password as a refresh token,
    /// must be shown.
    Token {
        /// User name.
        username: String,
        /// Password.
        password: String,
        /// Give tokens that allow to pull to anyone.
        anonymous_pull: bool,
        /// Lifetime of tokens.
        life: Duration,
        /// Know the OAuth2 way (POST) only.
        post_only: bool,
    },
}

/// Tokens that were given out.
pub(crate) struct Gate {
    login: Login,
    tokens: Mutex<HashMap<String, (Vec<String>, Instant)>>,
    count: AtomicU64,
}

impl Gate {
    pub(super) fn new(login: Login) -> Gate {
        Gate { login, tokens: Mutex::default(), count: AtomicU64::new(0) }
    }

    /// The challenge for a request that needs `scope`.
    pub(super) fn challenge(&self, url: &str, scope: &str) -> String {
        match self.login {
            Login::Basic { .. } => "Basic realm=\"fake\"".into(),
            _ => format!("Bearer realm=\"{url}/token\",service=\"fake\",scope=\"{scope}\""),
        }
    }

    /// Whether a request with this `Authorization` header may do what `scope` says.
    pub(super) fn admits(&self, header: Option<&str>, scope: &str) -> bool {
        match &self.login {
            Login::None => true,
            Login::Basic { username, password } => header.is_some_and(|h| is_basic(h, username, password)),
            Login::Token { .. } => {
                let token = header.and_then(|h| h.strip_prefix("Bearer ")).unwrap_or_default();
                let tokens = lock(&self.tokens);
                let scopes = tokens.get(token).filter(|(_, until)| *until > Instant::now()).map(|(scopes, _)| scopes);
                scopes.is_some_and(|scopes| scopes.iter().any(|held| allows(held, scope)))
            }
        }
    }

    /// The token server. `parameters` come from the query of a GET or the form of a POST.
    pub(super) fn token(&self, post: bool, header: Option<&str>, parameters: &[(String, String)]) -> Response<Body> {
        let Login::Token { username, password, anonymous_pull, life, post_only } = &self.login else {
            return error(StatusCode::NOT_FOUND, "UNSUPPORTED", "no token server");
        };
        if *post_only && !post {
            return error(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "POST only");
        }
        let value = |name: &str| parameters.iter().find(|(key, _)| key == name).map(|(_, v)| v.as_str());
        let known = match (post, value("grant_type")) {
            (true, Some("refresh_token")) => value("refresh_token") == Some(password),
            (true, Some("password")) => value("username") == Some(username) && value("password") == Some(password),
            (true, _) => false,
            (false, _) => header.is_some_and(|h| is_basic(h, username, password)),
        };
        if (header.is_some() || post) && !known {
            return error(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "wrong user name or password");
        }
        let asked = parameters.iter().filter(|(key, _)| key == "scope").flat_map(|(_, v)| v.split(' '));
        let scopes = asked.filter(|scope| known || (*anonymous_pull && scope.ends_with(":pull")));
        self.give(scopes.map(str::to_owned).collect(), *life)
    }

    fn give(&self, scopes: Vec<String>, life: Duration) -> Response<Body> {
        let token = format!("token-{}", self.count.fetch_add(1, Relaxed));
        lock(&self.tokens).insert(token.clone(), (scopes, Instant::now() + life));
        let answer = serde_json::json!({ "token": token, "expires_in": life.as_secs().max(1) });
        full(StatusCode::OK, "application/json", answer.to_string().into())
    }
}

/// Whether the scope `held` covers `wanted`: the same resource, and all of its actions.
fn allows(held: &str, wanted: &str) -> bool {
    let split = |scope: &str| scope.rsplit_once(':').map(|(r, a)| (r.to_owned(), a.to_owned()));
    let (Some((resource, actions)), Some((wanted, needed))) = (split(held), split(wanted)) else { return false };
    resource == wanted && needed.split(',').all(|action| actions.split(',').any(|held| held == action))
}

fn is_basic(header: &str, username: &str, password: &str) -> bool {
    let wanted = base64::engine::general_purpose::STANDARD.encode(format!("{username}:{password}"));
    header.strip_prefix("Basic ") == Some(wanted.as_str())
}
