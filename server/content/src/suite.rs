//! The contract's tests, for every implementation of [`Store`](crate::Store).
