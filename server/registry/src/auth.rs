//! Tokens.
#[derive(Default)]
pub(crate) struct Auth;
