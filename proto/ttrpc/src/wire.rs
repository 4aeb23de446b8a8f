//! The two envelopes of ttrpc (its `request.proto`), and `google.rpc.Status` inside the answer.

/// A call: which method, its message, how long the caller waits.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Request {
    /// Full service name, `containerd.task.v3.Task`.
    #[prost(string, tag = "1")]
    pub service: String,
    /// Method name, `Create`.
    #[prost(string, tag = "2")]
    pub method: String,
    /// The encoded request message.
    #[prost(bytes = "vec", tag = "3")]
    pub payload: Vec<u8>,
    /// How long the caller waits, in nanoseconds; 0 for as long as it takes.
    #[prost(int64, tag = "4")]
    pub timeout_nano: i64,
    /// Headers of the call, for example `containerd-namespace-ttrpc`.
    #[prost(message, repeated, tag = "5")]
    pub metadata: Vec<KeyValue>,
}

/// One header of a call.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct KeyValue {
    /// Name.
    #[prost(string, tag = "1")]
    pub key: String,
    /// Value.
    #[prost(string, tag = "2")]
    pub value: String,
}

/// The answer: a message, or why not.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Response {
    /// Absent or code 0 on success.
    #[prost(message, optional, tag = "1")]
    pub status: Option<RpcStatus>,
    /// The encoded response message.
    #[prost(bytes = "vec", tag = "2")]
    pub payload: Vec<u8>,
}

/// `google.rpc.Status`.
#[derive(Clone, PartialEq, prost::Message)]
pub struct RpcStatus {
    /// A gRPC status code.
    #[prost(int32, tag = "1")]
    pub code: i32,
    /// Text for people.
    #[prost(string, tag = "2")]
    pub message: String,
    /// Further typed details; carried by some peers, not used here.
    #[prost(message, repeated, tag = "3")]
    pub details: Vec<prost_types::Any>,
}
