//! Streams over WebSocket: each message begins with the number of its channel, and `base64.` protocols write it all as
//! text. From version 5 on, channel 255 closes the channel that it names.

mod tunnel;

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_util::sync::{CancellationToken, PollSender};

use super::inbox::{self, PIECE, inbox};
use super::remote::{Streams, Wanted};
pub(super) use tunnel::Tunnel;

/// Largest message that is taken.
const MAX_MESSAGE: usize = 1 << 20;
/// Messages that may wait to be sent.
const OUT: usize = 16;
/// How long the last messages may take to be written.
const FLUSH: Duration = Duration::from_secs(60);
/// Closes the channel that it names.
const CLOSE: u8 = 255;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const ERROR: u8 = 3;
const RESIZE: u8 = 4;

/// How channels are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Form {
    /// As text.
    pub(super) base64: bool,
    /// With closing of single channels.
    pub(super) closes: bool,
}

/// Makes a WebSocket of an upgraded connection.
pub(super) async fn accept<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> WebSocketStream<T> {
    let config = WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    let config = config.max_write_buffer_size(4 * MAX_MESSAGE).write_buffer_size(PIECE);
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// A connection with channels.
#[derive(Debug)]
pub(super) struct Connection {
    form: Form,
    out: mpsc::Sender<Out>,
    channels: oneshot::Sender<Vec<Option<inbox::Sender>>>,
    /// Cancelled when the client is gone.
    pub(super) gone: CancellationToken,
}

enum Out {
    Message(Message),
    End { done: oneshot::Sender<()> },
}

impl Connection {
    /// Serves a connection by tasks of its own until one side goes away or `gone` is cancelled.
    pub(super) async fn serve<T>(io: T, form: Form, gone: CancellationToken) -> Connection
    where
        T: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let (mut sink, mut source) = accept(io).await.split();
        let (out, mut outgoing) = mpsc::channel(OUT);
        let (channels, wait) = oneshot::channel::<Vec<Option<inbox::Sender>>>();
        let stop = gone.clone();
        tokio::spawn(async move {
            if let Ok(mut inboxes) = wait.await {
                let receive = async { while receive(&mut source, form, &mut inboxes).await {} };
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = receive => {}
                }
            }
            stop.cancel();
        });
        let stop = gone.clone();
        tokio::spawn(async move {
            while let Some(out) = outgoing.recv().await {
                let sent = match out {
                    Out::Message(message) if outgoing.is_empty() => sink.send(message).await,
                    Out::Message(message) => sink.feed(message).await,
                    Out::End { done } => {
                        let closed = sink.send(Message::Close(Some(good_bye()))).await;
                        let _ = done.send(());
                        closed
                    }
                };
                if sent.is_err() {
                    stop.cancel();
                    return;
                }
            }
        });
        Connection { form, out, channels, gone }
    }

    /// Opens the channels of a command.
    pub(super) async fn streams(self, wanted: Wanted) -> (Streams, Finish) {
        let mut inboxes: Vec<Option<inbox::Sender>> = vec![None; 5];
        let mut read = |channel: u8, wanted: bool| {
            let (sender, inbox) = inbox();
            inboxes[usize::from(channel)] = wanted.then_some(sender);
            wanted.then(|| Box::new(inbox) as super::Reader)
        };
        let stdin = read(STDIN, wanted.stdin);
        let resize = read(RESIZE, wanted.tty);
        let write = |channel: u8| Box::new(self.channel(channel)) as super::Writer;
        let streams = Streams {
            stdin,
            stdout: wanted.stdout.then(|| write(STDOUT)),
            stderr: wanted.stderr.then(|| write(STDERR)),
            error: Some(write(ERROR)),
            resize,
        };
        // Clients take an empty message as the sign that they are connected.
        let first = if wanted.stdout {
            STDOUT
        } else if wanted.stderr {
            STDERR
        } else {
            ERROR
        };
        let _ = self.out.send(Out::Message(encode(self.form, first, &[]))).await;
        let finish = self.start(inboxes);
        (streams, finish)
    }

    /// Opens channels by number: bytes from the client to each, in both directions where there is an inbox.
    pub(super) fn start(self, inboxes: Vec<Option<inbox::Sender>>) -> Finish {
        // The reading task only goes when the connection has.
        let _ = self.channels.send(inboxes);
        Finish { out: self.out, gone: self.gone }
    }

    /// Our direction of a channel.
    pub(super) fn channel(&self, number: u8) -> Channel {
        Channel { form: self.form, number, out: PollSender::new(self.out.clone()), gone: self.gone.clone() }
    }
}

/// Ends a connection.
#[derive(Debug)]
pub(super) struct Finish {
    out: mpsc::Sender<Out>,
    gone: CancellationToken,
}

impl Finish {
    /// Writes out all that was sent, says good-bye, and lets the client do the same.
    pub(super) async fn finish(self) {
        let (done, wait) = oneshot::channel();
        // A client that is gone, or was never told a result, must not take a good-bye for success.
        if !self.gone.is_cancelled() && self.out.send(Out::End { done }).await.is_ok() {
            let _ = tokio::time::timeout(FLUSH, wait).await;
            let _ = tokio::time::timeout(super::LINGER, self.gone.cancelled()).await;
        }
        self.gone.cancel();
    }
}

/// Takes one message; whether more can come.
async fn receive<S>(source: &mut S, form: Form, inboxes: &mut [Option<inbox::Sender>]) -> bool
where
    S: StreamExt<Item = Result<Message, tokio_tungstenite::tungstenite::Error>> + Unpin,
{
    let message = match source.next().await {
        Some(Ok(message)) => message,
        Some(Err(error)) => {
            tracing::debug!(%error, "WebSocket connection ended");
            return false;
        }
        None => return false,
    };
    match decode(form, message) {
        Decoded::Bytes(channel, bytes) => {
            if let Some(Some(inbox)) = inboxes.get(usize::from(channel)) {
                inbox.send(bytes).await;
            }
            true
        }
        Decoded::Close(channel) => {
            inboxes.get_mut(usize::from(channel)).and_then(Option::take).into_iter().for_each(inbox::Sender::end);
            true
        }
        Decoded::Nothing => true,
        Decoded::End => false,
    }
}

/// Clients take any other code, and none, for a failure.
fn good_bye() -> CloseFrame {
    CloseFrame { code: CloseCode::Normal, reason: "".into() }
}

#[derive(Debug, PartialEq)]
enum Decoded {
    Bytes(u8, Bytes),
    Close(u8),
    Nothing,
    End,
}

fn decode(form: Form, message: Message) -> Decoded {
    let (channel, bytes) = match message {
        Message::Binary(bytes) => match bytes.first() {
            Some(channel) => (*channel, bytes.slice(1..)),
            None => return Decoded::Nothing,
        },
        Message::Text(text) => match text.as_str().split_at_checked(1) {
            Some((digit, rest)) => {
                let (Some(channel), Ok(bytes)) = (digit.bytes().next(), STANDARD.decode(rest)) else {
                    return Decoded::End;
                };
                (channel.wrapping_sub(b'0'), bytes.into())
            }
            None => return Decoded::Nothing,
        },
        Message::Close(_) => return Decoded::End,
        Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return Decoded::Nothing,
    };
    match (channel, bytes.first()) {
        (CLOSE, Some(closed)) if form.closes => Decoded::Close(*closed),
        _ => Decoded::Bytes(channel, bytes),
    }
}

fn encode(form: Form, channel: u8, bytes: &[u8]) -> Message {
    if form.base64 {
        let digit = char::from(b'0'.wrapping_add(channel));
        return Message::Text(format!("{digit}{}", STANDARD.encode(bytes)).into());
    }
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(channel);
    message.extend(bytes);
    Message::Binary(message.into())
}

/// Our direction of a channel.
#[derive(Debug)]
pub(super) struct Channel {
    form: Form,
    number: u8,
    out: PollSender<Out>,
    gone: CancellationToken,
}

impl AsyncWrite for Channel {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        if self.gone.is_cancelled() {
            return Poll::Ready(Err(broken()));
        }
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        ready!(self.out.poll_reserve(context)).map_err(|_| broken())?;
        let length = bytes.len().min(PIECE);
        let message = Out::Message(encode(self.form, self.number, &bytes[..length]));
        self.out.send_item(message).map_err(|_| broken())?;
        Poll::Ready(Ok(length))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// A channel to the client ends with its connection: clients know no other end, though they may close theirs.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl std::fmt::Debug for Out {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Out::Message(_) => "Message",
            Out::End { .. } => "End",
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const V5: Form = Form { base64: false, closes: true };
    const TEXT: Form = Form { base64: true, closes: false };

    #[test]
    fn channels_are_closed_by_name_from_version_five_on() {
        let close = || Message::Binary(Bytes::from_static(&[255, 0]));
        assert_eq!(decode(V5, close()), Decoded::Close(0));
        assert_eq!(
            decode(Form { base64: false, closes: false }, close()),
            Decoded::Bytes(255, Bytes::from_static(&[0]))
        );
        assert_eq!(decode(TEXT, Message::Text("0!".into())), Decoded::End);
        assert_eq!(decode(TEXT, Message::Text("".into())), Decoded::Nothing);
    }

    proptest! {
        #[test]
        fn messages_are_read_as_they_are_written(channel in 0..5u8, bytes in proptest::collection::vec(any::<u8>(), 0..100)) {
            for form in [V5, TEXT] {
                prop_assert_eq!(decode(form, encode(form, channel, &bytes)), Decoded::Bytes(channel, bytes.clone().into()));
            }
        }

        #[test]
        fn no_message_makes_the_decoder_panic(text in ".{0,20}", bytes in proptest::collection::vec(any::<u8>(), 0..20)) {
            for form in [V5, TEXT] {
                decode(form, Message::Text(text.clone().into()));
                decode(form, Message::Binary(bytes.clone().into()));
            }
        }
    }
}
