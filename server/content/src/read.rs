//! Reading a blob's file.
