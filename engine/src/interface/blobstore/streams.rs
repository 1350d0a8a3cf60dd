//! Bodies between a guest's `wasi:io` streams and a storage, bounded on the way.
//!
//! Nothing runs beside the guest: an upload is polled when its guest waits for room or finishes it, a
//! download when its guest waits for bytes. So they end with the guest, and what was not finished is
//! dropped, which leaves no object.

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use capabilities::blobstore::{ByteStream, Content};
use capabilities::report;
use futures::future::BoxFuture;
use futures::stream::{self, StreamExt};
use std::future::poll_fn;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use tokio::sync::OwnedSemaphorePermit;
use wasmtime_wasi::p2::{InputStream, OutputStream, Pollable, StreamError, StreamResult};

use super::{Container, Result};

/// How much a guest may write ahead of the storage, and before the value has a container.
const PIPE_BYTES: usize = 256 << 10;

/// The resource `outgoing-value`: dropped before it is finished, nothing is stored.
#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub struct Outgoing(Arc<Value>);

struct Value {
    pipe: Mutex<Pipe>,
    upload: Mutex<Upload>,
}

/// What was written and not yet read.
#[derive(Default)]
struct Pipe {
    bytes: BytesMut,
    has_writer: bool,
    end: End,
    reader: Option<Waker>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum End {
    #[default]
    Open,
    /// All was written.
    Whole,
    /// It was given up.
    Broken,
}

enum Upload {
    /// It was not said what object it is to be.
    Unnamed,
    Running(BoxFuture<'static, Result<()>>),
    Done(Result<(), String>),
}

impl Outgoing {
    pub(crate) fn new() -> Self {
        Self(Arc::new(Value {
            pipe: Mutex::default(),
            upload: Mutex::new(Upload::Unnamed),
        }))
    }

    /// The one stream that fills it.
    pub(crate) fn writer(&self, permit: OwnedSemaphorePermit) -> Option<impl OutputStream> {
        let mut pipe = self.0.pipe();
        if std::mem::replace(&mut pipe.has_writer, true) {
            return None;
        }
        Some(Writer {
            value: Arc::clone(&self.0),
            _permit: permit,
        })
    }

    /// Says what it becomes, once.
    pub(crate) fn name(&self, container: Container, object: String) -> Result<(), String> {
        let mut upload = self.0.upload();
        match &*upload {
            Upload::Unnamed => {}
            Upload::Done(Err(why)) => return Err(why.clone()),
            Upload::Running(_) | Upload::Done(Ok(())) => {
                return Err("outgoing value is associated with an object already".to_owned());
            }
        }
        // Not the value itself: it holds the upload, which would hold it.
        let body = Arc::downgrade(&self.0);
        let body = stream::poll_fn(move |cx| match body.upgrade() {
            Some(value) => value.poll_body(cx),
            None => Poll::Ready(Some(Err("the value was dropped".into()))),
        });
        let body: ByteStream = Box::pin(body);
        *upload = Upload::Running(Box::pin(
            async move { container.write(&object, body).await },
        ));
        Ok(())
    }

    /// Makes it an object.
    pub(crate) async fn finish(self) -> Result<(), String> {
        self.0.end(End::Whole);
        if matches!(*self.0.upload(), Upload::Unnamed) {
            return Err("outgoing value not associated with a container".to_owned());
        }
        poll_fn(|cx| self.0.drive(cx)).await
    }
}

impl Drop for Outgoing {
    fn drop(&mut self) {
        self.0.end(End::Broken);
        *self.0.upload() = Upload::Done(Err("the value was dropped".to_owned()));
    }
}

impl Value {
    fn pipe(&self) -> MutexGuard<'_, Pipe> {
        self.pipe.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn upload(&self) -> MutexGuard<'_, Upload> {
        self.upload.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, end: End) {
        let mut pipe = self.pipe();
        if pipe.end == End::Open {
            pipe.end = end;
        }
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
    }

    fn poll_body(
        &self,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, capabilities::BoxError>>> {
        let mut pipe = self.pipe();
        if !pipe.bytes.is_empty() {
            return Poll::Ready(Some(Ok(pipe.bytes.split().freeze())));
        }
        match pipe.end {
            End::Open => {
                pipe.reader = Some(cx.waker().clone());
                Poll::Pending
            }
            End::Whole => Poll::Ready(None),
            End::Broken => Poll::Ready(Some(Err("the value was dropped".into()))),
        }
    }

    /// Lets the upload go on; ready once it has ended.
    fn drive(&self, cx: &mut Context<'_>) -> Poll<Result<(), String>> {
        let mut upload = self.upload();
        match &mut *upload {
            Upload::Unnamed => Poll::Pending,
            Upload::Done(result) => Poll::Ready(result.clone()),
            Upload::Running(future) => {
                let Poll::Ready(result) = future.as_mut().poll(cx) else {
                    return Poll::Pending;
                };
                let result = result.map_err(|error| report(&error));
                *upload = Upload::Done(result.clone());
                Poll::Ready(result)
            }
        }
    }

    /// How many bytes may be written now.
    ///
    /// More than fit before the value has a name end it: what a guest failed to write must not be
    /// missing in an object.
    fn room(&self) -> StreamResult<usize> {
        let mut upload = self.upload();
        let pipe = self.pipe();
        let room = PIPE_BYTES.saturating_sub(pipe.bytes.len());
        if room == 0 && matches!(*upload, Upload::Unnamed) {
            let why = format!("write-data was not called before {PIPE_BYTES} bytes were written");
            *upload = Upload::Done(Err(why));
        }
        match &*upload {
            Upload::Done(Err(why)) => {
                let error = wasmtime::Error::msg(why.clone());
                Err(StreamError::LastOperationFailed(error))
            }
            Upload::Done(Ok(())) => Err(StreamError::Closed),
            _ if pipe.end != End::Open => Err(StreamError::Closed),
            _ => Ok(room),
        }
    }
}

/// The stream of an outgoing value.
struct Writer {
    value: Arc<Value>,
    _permit: OwnedSemaphorePermit,
}

#[async_trait]
impl Pollable for Writer {
    async fn ready(&mut self) {
        poll_fn(|cx| {
            if self.value.drive(cx).is_ready() {
                return Poll::Ready(());
            }
            match self.value.room() {
                Ok(0) => Poll::Pending,
                _ => Poll::Ready(()),
            }
        })
        .await;
    }
}

#[async_trait]
impl OutputStream for Writer {
    fn write(&mut self, bytes: Bytes) -> StreamResult<()> {
        if bytes.len() > self.value.room()? {
            return Err(StreamError::trap(
                "more was written than check-write allowed",
            ));
        }
        let mut pipe = self.value.pipe();
        pipe.bytes.extend_from_slice(&bytes);
        if let Some(reader) = pipe.reader.take() {
            reader.wake();
        }
        Ok(())
    }

    /// What was written is stored by `finish`, or not at all.
    fn flush(&mut self) -> StreamResult<()> {
        self.value.room().map(drop)
    }

    fn check_write(&mut self) -> StreamResult<usize> {
        self.value.room()
    }
}

/// The resource `incoming-value`.
#[expect(unreachable_pub, reason = "generated bindings re-export it")]
pub struct Incoming {
    content: Content,
    permit: OwnedSemaphorePermit,
}

impl Incoming {
    pub(crate) fn new(content: Content, permit: OwnedSemaphorePermit) -> Self {
        Self { content, permit }
    }

    pub(crate) fn size(&self) -> u64 {
        self.content.size
    }

    /// All bytes; `None` when there are more than `bytes_max`.
    pub(crate) async fn bytes(mut self, bytes_max: u64) -> Result<Option<Vec<u8>>> {
        let size = self.size();
        if size > bytes_max {
            return Ok(None);
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        while let Some(piece) = self.content.body.next().await {
            bytes.extend_from_slice(&piece.map_err(capabilities::blobstore::Error::Body)?);
        }
        Ok(Some(bytes))
    }

    pub(crate) fn reader(self) -> impl InputStream {
        Reader {
            body: Some(self.content.body),
            piece: Ok(Bytes::new()),
            _permit: self.permit,
        }
    }
}

/// The stream of an incoming value.
struct Reader {
    /// `None` when it has ended.
    body: Option<ByteStream>,
    /// What arrived and was not read.
    piece: Result<Bytes, capabilities::BoxError>,
    _permit: OwnedSemaphorePermit,
}

#[async_trait]
impl Pollable for Reader {
    async fn ready(&mut self) {
        while let (Some(body), Ok(piece)) = (&mut self.body, &self.piece) {
            if !piece.is_empty() {
                return;
            }
            match body.next().await {
                Some(piece) => self.piece = piece,
                None => self.body = None,
            }
        }
    }
}

impl InputStream for Reader {
    fn read(&mut self, size: usize) -> StreamResult<Bytes> {
        match &mut self.piece {
            Ok(piece) if piece.is_empty() && self.body.is_none() => Err(StreamError::Closed),
            Ok(piece) => Ok(piece.split_to(size.min(piece.len()))),
            Err(_) => {
                self.body = None;
                match std::mem::replace(&mut self.piece, Ok(Bytes::new())) {
                    Ok(_) => Err(StreamError::Closed),
                    Err(error) => {
                        let text = report(&*error);
                        Err(StreamError::LastOperationFailed(wasmtime::Error::msg(text)))
                    }
                }
            }
        }
    }
}
