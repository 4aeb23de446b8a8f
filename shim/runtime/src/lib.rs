//! The built-in OCI runtime: a library, and a binary with runc's command line
