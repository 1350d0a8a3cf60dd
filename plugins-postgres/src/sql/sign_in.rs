//! From a name to a connection: addresses, TLS, and SCRAM-SHA-256.

use aws_lc_rs::{digest, hmac, pbkdf2, rand};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::{Buf as _, Bytes};
use capabilities::BoxError;
use capabilities::sql::{Error, Result};
use rustls::pki_types::ServerName;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::server::Server;
use super::wire::{self, Broken, Message, Wire, garbled, take_text};

/// The largest message before anybody has signed in, in bytes.
const MESSAGE_BYTES_MAX: usize = 64 << 10;

/// Rounds of hashing that a server may ask for: they keep a thread of the host busy.
const ROUNDS_MAX: u32 = 100_000;

/// The codes of requests that have no kind: the protocol, TLS, to cancel.
const PROTOCOL: u32 = 0x0003_0000;
const TLS: u32 = 80_877_103;
const CANCEL: u32 = 80_877_102;

/// Settings that change how values look as text, as poolers know them; see `session` for the others.
const PARAMETERS: [(&str, &str); 3] = [
    ("client_encoding", "UTF8"),
    ("DateStyle", "ISO, YMD"),
    ("TimeZone", "UTC"),
];

/// How a statement under way is cancelled.
#[derive(Clone, Copy)]
pub(super) struct Cancel {
    address: SocketAddr,
    key: (u32, u32),
}

impl Cancel {
    /// Asks the server to.
    pub(super) async fn send(self) -> std::io::Result<()> {
        let mut out = Vec::new();
        wire::message(&mut out, None, |out| {
            for number in [CANCEL, self.key.0, self.key.1] {
                out.extend(number.to_be_bytes());
            }
        });
        let mut socket = TcpStream::connect(self.address).await?;
        socket.write_all(&out).await?;
        // It says nothing, and ends when it is done.
        socket.read_u8().await.map_or(Ok(()), |_| Err(garbled()))
    }
}

pub(super) fn unavailable(why: impl Into<BoxError>) -> Error {
    Error::Unavailable(why.into())
}

pub(super) fn broken(broken: Broken) -> Error {
    match broken {
        Broken::Io(error) => unavailable(error),
        Broken::TooLarge => unavailable("the server sent more than it may"),
    }
}

/// Connects and signs in.
pub(super) async fn connect(server: &Server) -> Result<(Wire, Option<Cancel>)> {
    let (socket, address) = reach(server).await?;
    let mut wire = match &server.tls {
        None => Wire::new(Box::new(socket)),
        Some(config) => encrypt(server, Arc::clone(config), socket).await?,
    };
    let mut hello = Vec::new();
    wire::message(&mut hello, None, |out| {
        out.extend(PROTOCOL.to_be_bytes());
        let own = [
            ("user", server.user.as_str()),
            ("database", &server.database),
            ("application_name", &server.application),
        ];
        for (name, value) in own.into_iter().chain(PARAMETERS) {
            wire::text(out, name);
            wire::text(out, value);
        }
        out.push(0);
    });
    wire.send(&hello).await.map_err(unavailable)?;
    authenticate(server, &mut wire).await?;
    let mut cancel = None;
    loop {
        let Message { kind, mut body } = next(&mut wire).await?;
        match kind {
            b'K' => {
                let (Ok(process), Ok(secret)) = (body.try_get_u32(), body.try_get_u32()) else {
                    return Err(unavailable(garbled()));
                };
                let key = (process, secret);
                cancel = Some(Cancel { address, key });
            }
            b'Z' => return Ok((wire, cancel)),
            // Settings and notices.
            _ => {}
        }
    }
}

/// A connection to one of the addresses of the server's name that a workload may reach.
async fn reach(server: &Server) -> Result<(TcpStream, SocketAddr)> {
    let found = tokio::net::lookup_host((server.host.as_str(), server.port)).await;
    let found: Vec<_> = found.map_err(unavailable)?.collect();
    let mut allowed = found.iter().filter(|found| server.reach.allows(found.ip()));
    let mut last = match found.is_empty() {
        true => unavailable("the server's name has no address"),
        false => Error::AccessDenied(
            "workloads do not reach the server's address; loopback is reached only by its name, \
             link-local and metadata addresses never",
        ),
    };
    for address in allowed.by_ref().take(4) {
        match TcpStream::connect(address).await {
            Ok(socket) => {
                socket.set_nodelay(true).map_err(unavailable)?;
                return Ok((socket, *address));
            }
            Err(error) => last = unavailable(error),
        }
    }
    Err(last)
}

async fn encrypt(
    server: &Server,
    config: Arc<rustls::ClientConfig>,
    mut socket: TcpStream,
) -> Result<Wire> {
    let mut ask = Vec::new();
    wire::message(&mut ask, None, |out| out.extend(TLS.to_be_bytes()));
    socket.write_all(&ask).await.map_err(unavailable)?;
    if socket.read_u8().await.map_err(unavailable)? != b'S' {
        return Err(unavailable("the server has no TLS, which 'url' asks for"));
    }
    let name = ServerName::try_from(server.host.clone());
    let name = name.map_err(|_| unavailable("the server's name cannot be in a certificate"))?;
    let connector = TlsConnector::from(config);
    let socket = connector.connect(name, socket).await;
    Ok(Wire::new(Box::new(socket.map_err(unavailable)?)))
}

/// The next message that is no refusal.
async fn next(wire: &mut Wire) -> Result<Message> {
    let message = wire.next(MESSAGE_BYTES_MAX).await.map_err(broken)?;
    match message.kind {
        b'E' => Err(refused(&super::session::report(message.body).code)),
        _ => Ok(message),
    }
}

/// Why nobody was let in. The server's own words name role and database.
fn refused(code: &str) -> Error {
    match (code.get(..2), code) {
        (Some("28"), _) => Error::AccessDenied("the server refused the role or its password"),
        (_, "42501") => Error::AccessDenied("the role may not connect to the database"),
        (Some("3D"), _) => unavailable("the database does not exist"),
        (_, "53300") => unavailable("the server has no connection left"),
        _ => unavailable(format!("the server refused the connection with {code}")),
    }
}

async fn authenticate(server: &Server, wire: &mut Wire) -> Result<()> {
    let mut scram = None;
    loop {
        let Message { kind, mut body } = next(wire).await?;
        if kind != b'R' {
            continue;
        }
        let wanted = body.try_get_u32().map_err(|_| unavailable(garbled()))?;
        let answer = match (wanted, scram.as_mut()) {
            // A server that was asked to prove that it knows the password, too, has to.
            (0, Some(Scram { proved: false, .. })) => return Err(unavailable(garbled())),
            (0, _) => return Ok(()),
            (3, None) if server.tls.is_some() => {
                let mut password = server.password.clone().into_bytes();
                password.push(0);
                password
            }
            (3, None) => return Err(unavailable("the server wants the password in the clear")),
            (5, None) => {
                return Err(unavailable(
                    "the server wants the password hashed by MD5; set it again with \
                     password_encryption = 'scram-sha-256'",
                ));
            }
            (10, None) => {
                let (begun, first) = Scram::begin(&mut body).map_err(unavailable)?;
                scram = Some(begun);
                first
            }
            (11, Some(scram)) => scram
                .prove(&body, server.password.as_bytes())
                .map_err(unavailable)?,
            (12, Some(scram)) => {
                scram.check(&body).map_err(unavailable)?;
                continue;
            }
            _ => {
                return Err(unavailable(
                    "the server wants to be signed in to in a way unknown here",
                ));
            }
        };
        let mut out = Vec::new();
        wire::message(&mut out, Some(b'p'), |out| out.extend(answer));
        wire.send(&out).await.map_err(unavailable)?;
    }
}

/// One exchange of SCRAM-SHA-256, without channel binding.
struct Scram {
    nonce: String,
    /// What the server has to answer.
    signature: Option<hmac::Tag>,
    proved: bool,
}

const MECHANISM: &str = "SCRAM-SHA-256";

impl Scram {
    fn begin(mechanisms: &mut Bytes) -> Result<(Self, Vec<u8>), BoxError> {
        let mut offered = false;
        while mechanisms.first().is_some_and(|byte| *byte != 0) {
            offered |= take_text(mechanisms)? == MECHANISM;
        }
        if !offered {
            return Err(format!("the server does not offer {MECHANISM}").into());
        }
        let mut random = [0; 18];
        rand::fill(&mut random).map_err(|_| "there is no random number")?;
        let nonce = BASE64.encode(random);
        let first = format!("n,,n=,r={nonce}");
        let mut out = Vec::new();
        wire::text(&mut out, MECHANISM);
        out.extend(u32::try_from(first.len())?.to_be_bytes());
        out.extend(first.into_bytes());
        let begun = Self {
            nonce,
            signature: None,
            proved: false,
        };
        Ok((begun, out))
    }

    /// What shows that the password is known, without saying it.
    fn prove(&mut self, challenge: &[u8], password: &[u8]) -> Result<Vec<u8>, BoxError> {
        let challenge = std::str::from_utf8(challenge)?;
        let mut parts = challenge.split(',');
        let mut part = |name: &str| {
            let part = parts.next().and_then(|part| part.strip_prefix(name));
            part.ok_or_else(garbled)
        };
        let (nonce, salt, rounds) = (part("r=")?, part("s=")?, part("i=")?);
        if !nonce.starts_with(&self.nonce) || nonce.len() == self.nonce.len() {
            return Err(garbled().into());
        }
        let rounds = rounds.parse::<NonZeroU32>().map_err(|_| garbled())?;
        if rounds.get() > ROUNDS_MAX {
            let why = format!("the password is hashed {rounds} times, of at most {ROUNDS_MAX}");
            return Err(why.into());
        }
        let mut salted = [0; digest::SHA256_OUTPUT_LEN];
        let salt = BASE64.decode(salt)?;
        pbkdf2::derive(
            pbkdf2::PBKDF2_HMAC_SHA256,
            rounds,
            &salt,
            password,
            &mut salted,
        );
        let salted = hmac::Key::new(hmac::HMAC_SHA256, &salted);
        let last = format!("c=biws,r={nonce}");
        let all = format!("n=,r={},{challenge},{last}", self.nonce);
        let client = hmac::sign(&salted, b"Client Key");
        let stored = digest::digest(&digest::SHA256, client.as_ref());
        let stored = hmac::Key::new(hmac::HMAC_SHA256, stored.as_ref());
        let signature = hmac::sign(&stored, all.as_bytes());
        let pairs = client.as_ref().iter().zip(signature.as_ref());
        let proof: Vec<u8> = pairs.map(|(a, b)| a ^ b).collect();
        let server = hmac::sign(&salted, b"Server Key");
        let server = hmac::Key::new(hmac::HMAC_SHA256, server.as_ref());
        self.signature = Some(hmac::sign(&server, all.as_bytes()));
        Ok(format!("{last},p={}", BASE64.encode(proof)).into_bytes())
    }

    /// Whether the server knows the password.
    fn check(&mut self, answer: &[u8]) -> Result<(), BoxError> {
        let answer = std::str::from_utf8(answer)?.strip_prefix("v=");
        let answer = BASE64.decode(answer.ok_or_else(garbled)?)?;
        let expected = self.signature.as_ref().ok_or_else(garbled)?;
        if expected.as_ref() != answer {
            return Err("the server does not know the password either".into());
        }
        self.proved = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of RFC 7677, section 3.
    #[test]
    fn the_proof_is_that_of_the_standard() {
        let mut scram = Scram {
            nonce: "rOprNGfwEbeRWgbNEkqO".to_owned(),
            signature: None,
            proved: false,
        };
        // The standard's user name is in what is signed; Postgres takes it from elsewhere.
        let challenge = "r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,\
                         s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096";
        let proof = scram.prove(challenge.as_bytes(), b"pencil").unwrap();
        let proof = String::from_utf8(proof).unwrap();
        assert!(
            proof.starts_with("c=biws,r=rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0,p=")
        );
        assert!(scram.check(b"v=AAAA").is_err() && !scram.proved);
    }

    #[test]
    fn a_server_cannot_ask_for_much_work_or_another_nonce() {
        for challenge in [
            "r=own-more,s=AAAA,i=100001",
            "r=own-more,s=AAAA,i=0",
            "r=other,s=AAAA,i=1",
            "r=own,s=AAAA,i=1",
            "",
        ] {
            let mut scram = Scram {
                nonce: "own".to_owned(),
                signature: None,
                proved: false,
            };
            assert!(
                scram.prove(challenge.as_bytes(), b"x").is_err(),
                "{challenge}"
            );
        }
    }
}
