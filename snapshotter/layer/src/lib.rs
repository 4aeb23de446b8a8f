//! Layer tar from and to a directory: apply, diff, whiteouts, path safety, compression
