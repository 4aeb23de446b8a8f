//! Generated gRPC messages and services, and their conversion from and to the vocabulary
