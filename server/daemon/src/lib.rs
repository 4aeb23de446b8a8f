//! gantryd: configuration, wiring and the gRPC services
