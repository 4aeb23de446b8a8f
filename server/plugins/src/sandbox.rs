//! A sandbox controller in another process, over `containerd.services.sandbox.v1.Controller`.

use std::time::Duration;

use gantry_api::pb::containerd::services::sandbox::v1 as wire;
use gantry_types::Scope;
use tonic::transport::Channel;

use crate::peer::{Failure, MAX_MESSAGE, Peer, QUICK, SLOW};

/// How long a sandbox's end is waited for in one call; then another one is made.
const WAIT: Duration = Duration::from_secs(24 * 3600);

/// A sandbox controller in another process: its calls, as they are on the wire.
#[derive(Clone, Debug)]
pub struct RemoteSandboxer {
    peer: Peer,
    client: wire::controller_client::ControllerClient<Channel>,
}

/// One method a call.
macro_rules! calls {
    ($($(#[$doc:meta])* $name:ident($request:ident) -> $response:ty, $limit:expr;)*) => {$(
        $(#[$doc])*
        ///
        /// # Errors
        /// What the controller says; `Unavailable` where it is not to be reached.
        pub async fn $name(&self, scope: &Scope, message: wire::$request) -> Result<$response, Failure> {
            let mut client = self.client.clone();
            let request = self.peer.request(scope.namespace.as_str(), $limit, message);
            self.peer.answer($limit, client.$name(request)).await
        }
    )*};
}

impl RemoteSandboxer {
    /// The controller that `peer` serves.
    pub fn new(peer: Peer) -> RemoteSandboxer {
        let client = wire::controller_client::ControllerClient::new(peer.channel());
        RemoteSandboxer { client: client.max_decoding_message_size(MAX_MESSAGE), peer }
    }

    /// Its name, which requests carry.
    pub fn name(&self) -> &str {
        self.peer.name()
    }

    calls! {
        /// Makes a sandbox.
        create(ControllerCreateRequest) -> wire::ControllerCreateResponse, SLOW;
        /// Starts it.
        start(ControllerStartRequest) -> wire::ControllerStartResponse, SLOW;
        /// What containers in it have to be made for.
        platform(ControllerPlatformRequest) -> wire::ControllerPlatformResponse, QUICK;
        /// Ends its processes.
        stop(ControllerStopRequest) -> wire::ControllerStopResponse, SLOW;
        /// Waits for its end.
        wait(ControllerWaitRequest) -> wire::ControllerWaitResponse, WAIT;
        /// What it does.
        status(ControllerStatusRequest) -> wire::ControllerStatusResponse, QUICK;
        /// Ends it and clears it away.
        shutdown(ControllerShutdownRequest) -> wire::ControllerShutdownResponse, SLOW;
        /// What it has used.
        metrics(ControllerMetricsRequest) -> wire::ControllerMetricsResponse, QUICK;
        /// Tells it that its record has changed.
        update(ControllerUpdateRequest) -> wire::ControllerUpdateResponse, SLOW;
    }
}
