//! Two logical connections over one socket: eight bytes (number of the connection, length; big endian) in front of
//! each piece. The plug-in serves on the first, the runtime on the second.

use std::io;

use gantry_ttrpc::frame::{self, Decoded, Decoder, HEADER_LEN, MAX_PAYLOAD};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::mpsc;

/// The connection on which the plug-in serves.
const PLUGIN: u32 = 1;
/// The connection on which the runtime serves.
const RUNTIME: u32 = 2;
/// What the Go implementation's reader takes at once when it does not know how much will come. A frame is sent as one
/// piece of this size and one with all the rest: that reader takes exactly such pieces, and few of them can wait.
const FIRST: usize = 4096;
/// Pieces that may wait to be written.
const QUEUE: usize = 64;
/// Bytes read at once.
const CHUNK: usize = 16 << 10;

/// Both connections as sockets of their own. They end with the trunk, and it with either of them.
pub(crate) struct Connections {
    pub(crate) plugin: UnixStream,
    pub(crate) runtime: UnixStream,
}

/// Takes a socket apart. Must be called within a tokio runtime.
///
/// # Errors
/// When there are no descriptors left.
pub(crate) fn split(trunk: UnixStream) -> io::Result<Connections> {
    let (plugin, plugin_side) = UnixStream::pair()?;
    let (runtime, runtime_side) = UnixStream::pair()?;
    tokio::spawn(run(trunk, plugin_side, runtime_side));
    Ok(Connections { plugin, runtime })
}

async fn run(trunk: UnixStream, plugin: UnixStream, runtime: UnixStream) {
    let (from_trunk, to_trunk) = trunk.into_split();
    let (from_plugin, to_plugin) = plugin.into_split();
    let (from_runtime, to_runtime) = runtime.into_split();
    let (pieces, queue) = mpsc::channel(QUEUE);
    let ended = tokio::select! {
        ended = scatter(from_trunk, to_plugin, to_runtime) => ended,
        ended = write(to_trunk, queue) => ended,
        ended = gather(PLUGIN, from_plugin, pieces.clone()) => ended,
        ended = gather(RUNTIME, from_runtime, pieces) => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection of a plug-in broke");
    }
}

/// Hands what comes to the connection that it is for; what is for no known one is dropped.
async fn scatter(mut trunk: OwnedReadHalf, mut plugin: OwnedWriteHalf, mut runtime: OwnedWriteHalf) -> io::Result<()> {
    let mut piece = Vec::new();
    loop {
        let number = match trunk.read_u32().await {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            number => number?,
        };
        let length = trunk.read_u32().await? as usize;
        if length > HEADER_LEN + MAX_PAYLOAD {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("a piece of {length} bytes")));
        }
        piece.resize(length, 0);
        trunk.read_exact(&mut piece).await?;
        match number {
            PLUGIN => plugin.write_all(&piece).await?,
            RUNTIME => runtime.write_all(&piece).await?,
            _ => {}
        }
    }
}

/// Cuts what one connection sends into pieces.
async fn gather(number: u32, mut from: OwnedReadHalf, to: mpsc::Sender<Vec<u8>>) -> io::Result<()> {
    let (mut decoder, mut chunk) = (Decoder::new(), vec![0; CHUNK]);
    loop {
        let length = from.read(&mut chunk).await?;
        if length == 0 {
            return Ok(());
        }
        let mut input = &chunk[..length];
        while let Some(decoded) = decoder.feed(&mut input) {
            let Decoded::Frame(frame) = decoded else { continue };
            let mut bytes = Vec::new();
            let encoded = frame::encode(frame.stream, frame.kind, frame.flags, &frame.payload, &mut bytes);
            encoded.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
            to.send(pieces(number, &bytes)).await.map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        }
    }
}

/// A frame's pieces, one behind the other.
fn pieces(number: u32, frame: &[u8]) -> Vec<u8> {
    let (first, rest) = frame.split_at(frame.len().min(FIRST));
    let mut bytes = Vec::with_capacity(frame.len() + 16);
    for piece in [first, rest].into_iter().filter(|piece| !piece.is_empty()) {
        bytes.extend(number.to_be_bytes());
        bytes.extend(u32::try_from(piece.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend(piece);
    }
    bytes
}

async fn write(mut trunk: OwnedWriteHalf, mut queue: mpsc::Receiver<Vec<u8>>) -> io::Result<()> {
    while let Some(bytes) = queue.recv().await {
        trunk.write_all(&bytes).await?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_frame_is_sent_in_two_pieces_and_a_short_one_in_one() {
        let long = pieces(1, &[7; 10_000]);
        assert_eq!(long.len(), 10_000 + 16);
        assert_eq!(long[..8], [0, 0, 0, 1, 0, 0, 0x10, 0]);
        assert_eq!(pieces(2, &[7; 10])[..8], [0, 0, 0, 2, 0, 0, 0, 10]);
    }

    #[tokio::test]
    async fn what_comes_is_handed_to_its_connection_and_the_end_ends_both() {
        let (mut peer, trunk) = UnixStream::pair().unwrap();
        let mut connections = split(trunk).unwrap();
        peer.write_all(&[0, 0, 0, 2, 0, 0, 0, 3, b'a', b'b', b'c', 0, 0, 0, 1, 0, 0, 0, 1, b'x']).await.unwrap();
        let mut three = [0; 3];
        connections.runtime.read_exact(&mut three).await.unwrap();
        let mut one = [0; 1];
        connections.plugin.read_exact(&mut one).await.unwrap();
        assert_eq!((&three, &one), (b"abc", b"x"));
        drop(peer);
        assert_eq!(connections.runtime.read(&mut three).await.unwrap(), 0);
    }

    #[tokio::test]
    async fn a_piece_beyond_all_measure_ends_the_connection() {
        let (mut peer, trunk) = UnixStream::pair().unwrap();
        let mut connections = split(trunk).unwrap();
        peer.write_all(&[0, 0, 0, 1, 255, 255, 255, 255]).await.unwrap();
        assert_eq!(connections.plugin.read(&mut [0; 1]).await.unwrap(), 0);
    }
}
