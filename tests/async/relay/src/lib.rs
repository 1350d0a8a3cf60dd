//! `wasi:http/handler@0.3`: well-behaved or not; the path says how.
//!
//! | request | does |
//! |---|---|
//! | `GET /hello` | answers `hello` |
//! | `POST /mirror` | sends the body back while it arrives, then its trailers |
//! | `GET /stream?chunks=N&bytes=M` | writes N parts of M bytes |
//! | `GET /fetch?url=U` | asks U, and answers its status, then its body |
//! | `GET /both?a=U&b=V` | asks both at once, and answers both statuses |
//! | `GET /wait?ms=N` | waits on the clock |
//! | `GET /env?name=N` | answers a variable of its environment |
//! | `GET /connect` | answers why it may not connect |
//! | `GET /visits` | answers how many calls this instance had |
//! | `GET /after?ms=N` | answers, and goes on after that; then says so on stdout |
//! | `GET /code` | answers with an error code |
//! | `GET /trap`, `/loop`, `/never`, `/late-trap`, `/late-loop`, `/late-never`, `/short`, `/drop`, `/grow?mb=N`, `/flood?n=N` | misbehaves |

use std::cell::Cell;
use std::hint::black_box;

use answer::Target;
use wasip3::clocks::monotonic_clock;
use wasip3::http::client;
use wasip3::http::types::{ErrorCode, Fields, Method, Request, Response, Scheme};
use wasip3::sockets::types::{IpAddressFamily, IpSocketAddress, Ipv4SocketAddress, TcpSocket};
use wasip3::wit_future;

struct Relay;

wasip3::http::service::export!(Relay);

thread_local! {
    static VISITS: Cell<u32> = const { Cell::new(0) };
}

impl wasip3::exports::http::handler::Guest for Relay {
    async fn handle(request: Request) -> Result<Response, ErrorCode> {
        VISITS.set(VISITS.get() + 1);
        let target = Target::of(&request);
        let ms = target.number("ms", 0);
        Ok(match target.path.as_str() {
            "hello" => answer::text(200, "hello\n"),
            "mirror" => mirror(request),
            "stream" => {
                let bytes = usize::try_from(target.number("bytes", 1)).expect("fits");
                let (response, mut writer, end) = answer::head(200);
                let chunks = target.number("chunks", 1);
                wit_bindgen::spawn_local(async move {
                    for _ in 0..chunks {
                        if !writer.write_all(vec![b'x'; bytes]).await.is_empty() {
                            return;
                        }
                    }
                    drop(writer);
                    drop(end);
                });
                response
            }
            "fetch" => {
                let response = fetch(target.param("url").unwrap_or_default()).await?;
                let status = response.get_status_code();
                let (_, done) = wit_future::new(|| Ok(()));
                let (body, _) = Response::consume_body(response, done);
                let body = body.collect().await;
                answer::bytes(200, [format!("{status} ").into_bytes(), body].concat())
            }
            // Both are under way at once: each waits until the other has come.
            "both" => {
                let [a, b] = ["a", "b"].map(|name| target.param(name).unwrap_or_default());
                let mut statuses = Vec::new();
                for response in answer::join_all([fetch(a), fetch(b)]).await {
                    statuses.push(response?.get_status_code().to_string());
                }
                answer::text(200, statuses.join(" "))
            }
            "wait" => {
                monotonic_clock::wait_for(ms * 1_000_000).await;
                answer::text(200, "waited\n")
            }
            "env" => {
                let name = target.param("name").unwrap_or_default();
                let mut variables = wasip3::cli::environment::get_environment().into_iter();
                let value = variables.find(|(known, _)| known == name);
                answer::text(200, value.map(|(_, value)| value).unwrap_or_default())
            }
            "connect" => {
                let why = match TcpSocket::create(IpAddressFamily::Ipv4) {
                    Ok(socket) => {
                        let address = IpSocketAddress::Ipv4(Ipv4SocketAddress {
                            port: 80,
                            address: (127, 0, 0, 1),
                        });
                        socket.connect(address).await
                    }
                    Err(why) => Err(why),
                };
                answer::text(200, format!("{why:?}\n"))
            }
            "visits" => answer::text(200, VISITS.get().to_string()),
            "after" => {
                wit_bindgen::spawn_local(async move {
                    monotonic_clock::wait_for(ms * 1_000_000).await;
                    println!("after the answer");
                });
                answer::text(200, "answered\n")
            }
            "code" => return Err(ErrorCode::HttpRequestDenied),
            "trap" => core::arch::wasm32::unreachable(),
            "loop" => spin(),
            "never" => {
                std::future::pending::<()>().await;
                unreachable!()
            }
            "late-trap" => {
                late(async { core::arch::wasm32::unreachable() })
            }
            "late-loop" => late(async { spin() }),
            // The body is neither written on nor ended.
            "late-never" => late(std::future::pending()),
            // Says that its body is longer than it is.
            "short" => {
                let headers = Fields::from_list(&[("content-length".to_owned(), b"10".to_vec())]);
                let (response, mut writer, end) = answer::with(200, headers.expect("valid headers"));
                wit_bindgen::spawn_local(async move {
                    writer.write_all(b"short".to_vec()).await;
                    drop((writer, end));
                });
                response
            }
            // Drops the writing end at once.
            "drop" => {
                let (response, writer, end) = answer::head(200);
                drop((writer, end));
                response
            }
            "grow" => {
                let bytes = usize::try_from(target.number("mb", 1) << 20).expect("fits");
                let memory = vec![1u8; bytes];
                black_box(&memory);
                monotonic_clock::wait_for(ms * 1_000_000).await;
                answer::text(200, format!("{}\n", memory.len() >> 20))
            }
            // Starts calls that the host has to remember, and never waits for one.
            "flood" => {
                for _ in 0..target.number("n", 1) {
                    wit_bindgen::spawn_local(async {
                        monotonic_clock::wait_for(3_600_000_000_000).await;
                    });
                }
                answer::text(200, "flooded\n")
            }
            _ => answer::text(404, "unknown\n"),
        })
    }
}

fn spin() -> ! {
    loop {
        black_box(());
    }
}

/// Writes `some`, then does what it does.
fn late(then: impl Future<Output = ()> + 'static) -> Response {
    let (response, mut writer, end) = answer::head(200);
    wit_bindgen::spawn_local(async move {
        writer.write_all(b"some".to_vec()).await;
        then.await;
        drop((writer, end));
    });
    response
}

fn mirror(request: Request) -> Response {
    let (_, done) = wit_future::new(|| Ok(()));
    let (body, trailers) = Request::consume_body(request, done);
    let (response, _) = Response::new(Fields::new(), Some(body), trailers);
    response
}

async fn fetch(url: &str) -> Result<Response, ErrorCode> {
    let (scheme, rest) = url.split_once("://").ok_or(ErrorCode::HttpRequestUriInvalid)?;
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (_, trailers) = wit_future::new(|| Ok(None));
    let (request, _) = Request::new(Fields::new(), None, trailers, None);
    let scheme = match scheme {
        "http" => Scheme::Http,
        _ => Scheme::Https,
    };
    let set = request.set_method(&Method::Get);
    let set = set.and_then(|()| request.set_scheme(Some(&scheme)));
    let set = set.and_then(|()| request.set_authority(Some(authority)));
    let set = set.and_then(|()| request.set_path_with_query(Some(&format!("/{path}"))));
    set.map_err(|()| ErrorCode::HttpRequestUriInvalid)?;
    client::send(request).await
}
