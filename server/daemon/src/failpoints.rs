//! For tests of sudden death: a call can name the place at which the daemon is to be killed.
//!
//! Only with the feature `failpoints`, which no release has, and only where the environment has `FAILPOINTS`. The header
//! `gantry-failpoint: NAME*N` kills the process, as `kill -9` would, when NAME is passed the N-th time (the first time
//! without `*N`), be it by that call or a later one. With `stop` behind it, and a space between, the process is stopped
//! (`SIGSTOP`) instead.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::sys::signal::{Signal, raise};
use tonic::service::Routes;
use tower::ServiceBuilder;

const HEADER: &str = "gantry-failpoint";

/// Whether calls may name fail points.
static OPEN: AtomicBool = AtomicBool::new(false);

/// Takes over the fail points that the environment variable `FAILPOINTS` sets, for as long as the value lives. `present`:
/// there is such a variable, though it may be empty.
pub fn setup(present: bool) -> Option<fail::FailScenario<'static>> {
    OPEN.store(present, Ordering::SeqCst);
    present.then(fail::FailScenario::setup)
}

/// Lets calls name fail points.
pub(crate) fn wrap(routes: Routes) -> Routes {
    let layer = ServiceBuilder::new().map_request(arm).map_future(answer);
    Routes::from(routes.into_axum_router().layer(layer))
}

fn arm<B>(request: http::Request<B>) -> http::Request<B> {
    let named = request.headers().get(HEADER).filter(|_| OPEN.load(Ordering::SeqCst));
    if let Some(text) = named.and_then(|value| value.to_str().ok()) {
        let (point, signal) = match text.strip_suffix(" stop") {
            Some(point) => (point, Signal::SIGSTOP),
            None => (text, Signal::SIGKILL),
        };
        let (name, count) = point.split_once('*').unwrap_or((point, "1"));
        let left = AtomicU64::new(count.parse().unwrap_or(1));
        let hit = move || {
            if left.fetch_sub(1, Ordering::SeqCst) == 1 {
                // Nothing survives a kill that could look at the result, and a stop cannot fail.
                let _ = raise(signal);
            }
        };
        if let Err(error) = fail::cfg_callback(name, hit) {
            tracing::error!(name, error, "fail point not set");
        }
    }
    fail::fail_point!("daemon::before-call");
    request
}

async fn answer<F: Future>(future: F) -> F::Output {
    let output = future.await;
    fail::fail_point!("daemon::before-answer");
    output
}
