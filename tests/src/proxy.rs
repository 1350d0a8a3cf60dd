//! A TCP proxy that counts, pauses, slows down and cuts.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Result;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinSet,
};

/// How long what a slow link forwards at once takes it.
const SLOW_STEP: Duration = Duration::from_millis(50);

/// Stands between a client and a server: forwards bytes, counts them, holds them back, or closes
/// every connection. Stops when dropped.
///
/// What is held back is not lost: like a network that is interrupted, it delivers once it can.
pub struct Proxy {
    address: String,
    mode: watch::Sender<Mode>,
    seen: Arc<Seen>,
    _tasks: JoinSet<()>,
}

#[derive(Clone, Copy, Default)]
struct Mode {
    paused: bool,
    /// Holds back what servers say.
    muted: bool,
    /// In each direction of a connection.
    bytes_per_s: Option<NonZeroU32>,
    /// Connections made under an older number are closed.
    cuts: u64,
}

#[derive(Default)]
struct Seen {
    connections: AtomicU64,
    bytes: AtomicU64,
}

impl Proxy {
    /// Listens on a free port of 127.0.0.1 and forwards to `upstream`, a `host:port`, which need
    /// not be there yet.
    ///
    /// # Errors
    /// When no port can be bound.
    pub async fn start(upstream: &str) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?.to_string();
        let (mode, watched) = watch::channel(Mode::default());
        let seen = Arc::new(Seen::default());
        let mut tasks = JoinSet::new();
        tasks.spawn(accept(
            listener,
            upstream.to_owned(),
            watched,
            Arc::clone(&seen),
        ));
        Ok(Self {
            address,
            mode,
            seen,
            _tasks: tasks,
        })
    }

    /// `127.0.0.1:<port>` where it listens.
    pub fn address(&self) -> String {
        self.address.clone()
    }

    /// Accepts connections but forwards no byte from now on, in either direction.
    pub fn pause(&self) {
        self.mode.send_modify(|mode| mode.paused = true);
    }

    /// Accepts connections, but forwards no byte that the server sends from now on.
    pub fn mute(&self) {
        self.mode.send_modify(|mode| mode.muted = true);
    }

    /// Forwards at most so many bytes per second from now on, in each direction of a connection.
    pub fn slow(&self, bytes_per_s: NonZeroU32) {
        self.mode
            .send_modify(|mode| mode.bytes_per_s = Some(bytes_per_s));
    }

    /// Forwards again as fast as it can, first what was held back.
    pub fn resume(&self) {
        self.mode.send_modify(|mode| {
            *mode = Mode {
                cuts: mode.cuts,
                ..Mode::default()
            };
        });
    }

    /// Closes every connection there is; new ones are accepted.
    pub fn cut(&self) {
        self.mode.send_modify(|mode| mode.cuts += 1);
    }

    /// How many connections were accepted so far.
    pub fn connections(&self) -> u64 {
        self.seen.connections.load(Ordering::SeqCst)
    }

    /// How many bytes were forwarded from the server to clients so far.
    pub fn bytes(&self) -> u64 {
        self.seen.bytes.load(Ordering::SeqCst)
    }
}

async fn accept(
    listener: TcpListener,
    upstream: String,
    mode: watch::Receiver<Mode>,
    seen: Arc<Seen>,
) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Ok((client, _)) = listener.accept() => {
                seen.connections.fetch_add(1, Ordering::SeqCst);
                connections.spawn(connection(client, upstream.clone(), mode.clone(), Arc::clone(&seen)));
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn connection(
    client: TcpStream,
    upstream: String,
    mut mode: watch::Receiver<Mode>,
    seen: Arc<Seen>,
) {
    let made_under = mode.borrow().cuts;
    let (up, down) = (mode.clone(), mode.clone());
    let forward = async {
        let server = TcpStream::connect(&upstream).await?;
        let (from_client, to_client) = client.into_split();
        let (from_server, to_server) = server.into_split();
        let upward = Seen::default();
        tokio::try_join!(
            copy(from_client, to_server, up, |mode| mode.paused, &upward),
            copy(
                from_server,
                to_client,
                down,
                |mode| mode.paused || mode.muted,
                &seen
            ),
        )
    };
    tokio::select! {
        _ = forward => {}
        _ = mode.wait_for(|mode| mode.cuts > made_under) => {}
    }
}

async fn copy(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    mut mode: watch::Receiver<Mode>,
    held: impl Fn(&Mode) -> bool,
    seen: &Seen,
) -> std::io::Result<()> {
    let mut chunk = vec![0; 16 << 10];
    loop {
        let read = from.read(&mut chunk).await?;
        let gone = mode.wait_for(|mode| !held(mode)).await.is_err();
        if read == 0 || gone {
            return to.shutdown().await;
        }
        let mut rest = chunk.get(..read).unwrap_or_default();
        while !rest.is_empty() {
            let rate = mode.borrow().bytes_per_s;
            let step = rate.map_or(usize::MAX, |rate| (rate.get() / 20).max(1) as usize);
            let (part, later) = rest.split_at(step.min(rest.len()));
            to.write_all(part).await?;
            seen.bytes.fetch_add(part.len() as u64, Ordering::SeqCst);
            if rate.is_some() {
                tokio::time::sleep(SLOW_STEP).await;
            }
            rest = later;
        }
    }
}
