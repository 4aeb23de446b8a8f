//! Requests whose clients have not come yet, by token.

use std::collections::HashMap;
use std::fs::File;
use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{Attach, Error, Exec, PortForward, Result};

/// How many requests may wait.
const LIMIT: usize = 1000;
/// 128 bits cannot be guessed.
const BYTES: usize = 16;

/// What a client comes for.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Request {
    Exec(Exec),
    Attach(Attach),
    PortForward(PortForward),
}

/// Requests by token. Each is given out once, and only while it is fresh.
#[derive(Debug)]
pub(super) struct Tokens {
    lifetime: Duration,
    waiting: Mutex<HashMap<String, (Instant, Request)>>,
}

impl Tokens {
    pub(super) fn new(lifetime: Duration) -> Tokens {
        Tokens { lifetime, waiting: Mutex::default() }
    }

    /// Keeps a request; its token.
    pub(super) fn issue(&self, request: Request) -> Result<String> {
        let mut bytes = [0; BYTES];
        File::open("/dev/urandom").and_then(|mut f| f.read_exact(&mut bytes)).map_err(Error::Random)?;
        let token = URL_SAFE_NO_PAD.encode(bytes);
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.retain(|_, (since, _)| since.elapsed() < self.lifetime);
        if waiting.len() >= LIMIT {
            return Err(Error::TooMany { limit: LIMIT });
        }
        waiting.insert(token.clone(), (Instant::now(), request));
        Ok(token)
    }

    /// Takes the request of a token.
    pub(super) fn redeem(&self, token: &str) -> Option<Request> {
        let taken = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).remove(token);
        taken.filter(|(since, _)| since.elapsed() < self.lifetime).map(|(_, request)| request)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request() -> Request {
        Request::PortForward(PortForward::default())
    }

    #[test]
    fn a_token_is_good_once() {
        let tokens = Tokens::new(Duration::from_secs(60));
        let token = tokens.issue(request()).unwrap();
        assert_eq!(token.len(), 22);
        assert_eq!(tokens.redeem(&token), Some(request()));
        assert_eq!(tokens.redeem(&token), None);
        assert_ne!(tokens.issue(request()).unwrap(), tokens.issue(request()).unwrap());
    }

    #[test]
    fn a_token_expires_and_makes_room() {
        let tokens = Tokens::new(Duration::ZERO);
        let token = tokens.issue(request()).unwrap();
        assert_eq!(tokens.redeem(&token), None);
        for _ in 0..LIMIT + 10 {
            tokens.issue(request()).unwrap();
        }
        let tokens = Tokens::new(Duration::from_secs(60));
        let outcomes: Vec<_> = (0..=LIMIT).map(|_| tokens.issue(request()).is_ok()).collect();
        assert!(outcomes[..LIMIT].iter().all(|ok| *ok) && !outcomes[LIMIT]);
    }
}
