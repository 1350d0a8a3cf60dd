//! Messages of Postgres' protocol 3.0, none larger than the caller allows.

use bytes::{Buf, Bytes, BytesMut};
use std::io;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

/// Bytes that are read at once.
const READ_BYTES: usize = 16 << 10;

/// What a buffer may keep while its connection lies idle.
const IDLE_BYTES_MAX: usize = 2 * READ_BYTES;

/// What the bytes go through: TCP, or TLS on it.
pub(super) trait Socket: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Socket for T {}

/// One connection, as messages.
pub(super) struct Wire {
    socket: Box<dyn Socket>,
    read: BytesMut,
}

/// What the server says.
pub(super) struct Message {
    pub(super) kind: u8,
    pub(super) body: Bytes,
}

/// Why there is no message.
pub(super) enum Broken {
    /// It is larger than allowed; the connection is of no further use.
    TooLarge,
    Io(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// What the server says is no message of the protocol.
pub(super) fn garbled() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "the server does not keep to Postgres' protocol",
    )
}

impl Wire {
    pub(super) fn new(socket: Box<dyn Socket>) -> Self {
        Self {
            socket,
            read: BytesMut::new(),
        }
    }

    pub(super) async fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.socket.write_all(bytes).await?;
        self.socket.flush().await
    }

    /// The next message, of at most `bytes_max`. Shape: nothing is lost when the future is dropped.
    pub(super) async fn next(&mut self, bytes_max: usize) -> Result<Message, Broken> {
        loop {
            if let Some(message) = self.take(bytes_max)? {
                return Ok(message);
            }
            // What a header announces is not believed before it comes.
            self.read.reserve(READ_BYTES);
            if self.socket.read_buf(&mut self.read).await? == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }

    fn take(&mut self, bytes_max: usize) -> Result<Option<Message>, Broken> {
        let mut header = self.read.as_ref();
        let (Ok(kind), Ok(length)) = (header.try_get_u8(), header.try_get_u32()) else {
            return Ok(None);
        };
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let Some(size) = length.checked_sub(4) else {
            return Err(garbled().into());
        };
        if size > bytes_max {
            return Err(Broken::TooLarge);
        }
        if header.len() < size {
            return Ok(None);
        }
        self.read.advance(5);
        Ok(Some(Message {
            kind,
            body: self.read.split_to(size).freeze(),
        }))
    }

    /// Whether the server has said nothing that was not asked for, nor gone away.
    pub(super) fn is_quiet(&mut self) -> bool {
        use futures::FutureExt as _;
        self.read.is_empty() && self.socket.read_u8().now_or_never().is_none()
    }

    /// Gives back the room that large messages took.
    pub(super) fn shrink(&mut self) {
        if self.read.is_empty() && self.read.capacity() > IDLE_BYTES_MAX {
            self.read = BytesMut::new();
        }
    }
}

/// Adds a message of `kind` to `out`; `None` for the first, which has no kind.
pub(super) fn message(out: &mut Vec<u8>, kind: Option<u8>, body: impl FnOnce(&mut Vec<u8>)) {
    out.extend(kind);
    let at = out.len();
    out.extend([0; 4]);
    body(out);
    // Whoever sends bounds what is sent; see `STATEMENT_BYTES_MAX`.
    let length = u32::try_from(out.len() - at).unwrap_or(u32::MAX);
    if let Some(place) = out.get_mut(at..at + 4) {
        place.copy_from_slice(&length.to_be_bytes());
    }
}

/// Adds a text that ends with a NUL; there is none in it.
pub(super) fn text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(text.as_bytes());
    out.push(0);
}

/// Takes a text that ends with a NUL.
pub(super) fn take_text(body: &mut Bytes) -> io::Result<String> {
    let end = body.iter().position(|byte| *byte == 0);
    let text = body.split_to(end.ok_or_else(garbled)?);
    body.advance(1);
    Ok(String::from_utf8_lossy(&text).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_are_read_in_pieces_and_bounded() {
        let (mut server, client) = tokio::io::duplex(64);
        let mut wire = Wire::new(Box::new(client));
        let mut out = Vec::new();
        message(&mut out, Some(b'Q'), |out| text(out, "select"));
        assert!(wire.is_quiet());
        for piece in out.chunks(3) {
            server.write_all(piece).await.unwrap();
        }
        let Ok(mut first) = wire.next(7).await else {
            panic!("no message")
        };
        assert_eq!(first.kind, b'Q');
        assert_eq!(take_text(&mut first.body).unwrap(), "select");
        assert!(wire.is_quiet());
        server.write_all(&out).await.unwrap();
        assert!(matches!(wire.next(6).await, Err(Broken::TooLarge)));
        drop(server);
        assert!(!wire.is_quiet());
    }
}
