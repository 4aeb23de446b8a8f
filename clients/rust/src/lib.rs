//! A typed, asynchronous client of the daemon
