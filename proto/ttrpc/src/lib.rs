//! The shim socket: frames, streams in flight, an async client and an epoll server, and the shim protocol's messages
