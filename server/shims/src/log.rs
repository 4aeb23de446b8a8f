//! A shim's log: lines from the bundle's fifo into ours.

use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::task::AbortHandle;

use crate::Bundle;

/// Longest line that is kept whole.
const MAX_LINE: usize = 4096;

/// Reads a shim's log until dropped.
#[derive(Debug)]
pub(crate) struct LogReader(AbortHandle);

impl LogReader {
    /// Opens the fifo, before the shim does. A log that cannot be read is no reason not to run: it is said and left.
    pub(crate) fn open(bundle: &Bundle, namespace: &str, id: &str) -> Option<LogReader> {
        // Held for writing too, so that there is no end of file between one writer and the next.
        match pipe::OpenOptions::new().read_write(true).open_receiver(bundle.log()) {
            Ok(fifo) => {
                let task = tokio::spawn(copy(fifo, namespace.to_owned(), id.to_owned()));
                Some(LogReader(task.abort_handle()))
            }
            Err(error) => {
                tracing::warn!(namespace, id, %error, "cannot read the shim's log");
                None
            }
        }
    }
}

impl Drop for LogReader {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn copy(fifo: pipe::Receiver, namespace: String, id: String) {
    let mut reader = BufReader::with_capacity(MAX_LINE, fifo);
    loop {
        let Ok(bytes) = reader.fill_buf().await else { return };
        if bytes.is_empty() {
            return;
        }
        let end = bytes.iter().position(|&b| b == b'\n').map_or(bytes.len(), |at| at + 1);
        let line = String::from_utf8_lossy(&bytes[..end]);
        let line = line.trim();
        if !line.is_empty() {
            tracing::info!(target: "shim", namespace, id, "{line}");
        }
        reader.consume(end);
    }
}
