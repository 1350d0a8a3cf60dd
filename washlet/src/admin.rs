//! The admin endpoint: how the host is, for supervisors and for Prometheus.
//!
//! | path | answers |
//! |---|---|
//! | `/livez` | 200 while the control plane runs, else 503: a restart would help |
//! | `/readyz` | 200, or 503 and what is not ready, a line each |
//! | `/metrics` | Prometheus' text format |
//!
//! It has a thread and a runtime of its own: nothing that guests, pulls or the control plane do delays it.

use std::convert::Infallible;
use std::fmt::{Display, Write as _};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use engine::Used;
use futures::stream::{FuturesUnordered, StreamExt};
use http::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use crate::control::nats;
use crate::health::{CLASSES, Came, Health};
use crate::host::{Busy, Host};
use crate::pressure::{RESOURCES, Resource};

/// Connections at once; more wait in the kernel's backlog.
const CONNECTIONS_MAX: usize = 32;

/// How long a connection may take: a request and its answer, no more.
const CONNECTION_TIME_MAX: Duration = Duration::from_secs(10);

/// As a label.
const CLASS_NAMES: [&str; CLASSES] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

/// How long a client may take for the head of its request.
const HEAD_TIME_MAX: Duration = Duration::from_secs(5);

/// The admin endpoint; it ends when dropped.
pub struct Admin {
    address: SocketAddr,
    /// Dropped to end the thread.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Admin {
    /// Serves on `address`; port 0 picks a free one.
    ///
    /// # Errors
    /// When the address cannot be bound, or there is no thread to be had.
    pub fn start(address: SocketAddr, host: Host, health: Health) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let (stop, stopped) = oneshot::channel();
        let thread = thread::Builder::new().name("admin".to_owned());
        let thread = thread.spawn(move || {
            let serve = async {
                tokio::select! {
                    served = serve(listener, &host, &health) => {
                        let error = served.err();
                        tracing::error!(?error, "the admin endpoint cannot be served");
                    }
                    // An error: the other side is gone, which means the same.
                    _ = stopped => {}
                }
            };
            runtime.block_on(serve);
        })?;
        Ok(Self {
            address,
            stop: Some(stop),
            thread: Some(thread),
        })
    }

    /// Where it is, with the actual port.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Admin {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It panicked, or it has ended: both are over.
            let _ = thread.join();
        }
    }
}

async fn serve(listener: TcpListener, host: &Host, health: &Health) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let mut connections = FuturesUnordered::new();
    loop {
        tokio::select! {
            Some(()) = connections.next() => {}
            accepted = listener.accept(), if connections.len() < CONNECTIONS_MAX => {
                match accepted {
                    Ok((stream, _)) => connections.push(connection(stream, host, health)),
                    // Of that one client, or of this process, which may have files again soon.
                    Err(error) => {
                        tracing::warn!(%error, "the admin endpoint cannot accept a connection");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                }
            }
        }
    }
}

async fn connection(stream: TcpStream, host: &Host, health: &Health) {
    let service = service_fn(async |request: Request<Incoming>| {
        Ok::<_, Infallible>(answer(&request, host, health))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME_MAX)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_TIME_MAX, served).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a connection to the admin endpoint failed"),
        Err(_) => tracing::debug!("a connection to the admin endpoint took too long"),
    }
}

fn answer(request: &Request<Incoming>, host: &Host, health: &Health) -> Response<Full<Bytes>> {
    const TEXT: &str = "text/plain; charset=utf-8";
    if !matches!(*request.method(), Method::GET | Method::HEAD) {
        let mut refused = response(
            StatusCode::METHOD_NOT_ALLOWED,
            TEXT,
            "only GET\n".to_owned(),
        );
        let allowed = HeaderValue::from_static("GET, HEAD");
        refused.headers_mut().insert(ALLOW, allowed);
        return refused;
    }
    let lines = |reasons: &[String]| reasons.join("\n") + "\n";
    match request.uri().path() {
        "/livez" if health.is_alive() => response(StatusCode::OK, TEXT, "ok\n".to_owned()),
        "/livez" => {
            let text = "the control plane does not run\n".to_owned();
            response(StatusCode::SERVICE_UNAVAILABLE, TEXT, text)
        }
        "/readyz" => match health.not_ready().as_slice() {
            [] => response(StatusCode::OK, TEXT, "ok\n".to_owned()),
            reasons => response(StatusCode::SERVICE_UNAVAILABLE, TEXT, lines(reasons)),
        },
        "/metrics" => {
            let kind = "text/plain; version=0.0.4; charset=utf-8";
            response(StatusCode::OK, kind, metrics(host, health))
        }
        _ => {
            let text = "there are /livez, /readyz and /metrics\n".to_owned();
            response(StatusCode::NOT_FOUND, TEXT, text)
        }
    }
}

fn response(status: StatusCode, kind: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(text.into()));
    *response.status_mut() = status;
    let kind = HeaderValue::from_static(kind);
    response.headers_mut().insert(CONTENT_TYPE, kind);
    response
}

/// Metrics as text, one family after the other.
#[derive(Default)]
struct Page(String);

impl Page {
    /// What the samples that follow are of.
    fn head(&mut self, name: &str, kind: &str, help: &str) {
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &[(&str, &str)], sample: impl Display) {
        self.0.push_str(name);
        for (index, (label, value)) in labels.iter().enumerate() {
            self.0.push(if index == 0 { '{' } else { ',' });
            let value = value.replace('\\', "\\\\");
            let value = value.replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{label}=\"{value}\"");
        }
        let end = if labels.is_empty() { "" } else { "}" };
        let _ = writeln!(self.0, "{end} {sample}");
    }

    /// A family of which the samples are told apart by `label`.
    fn family(&mut self, name: &str, kind: &str, help: &str, label: &str, samples: &[(&str, u64)]) {
        self.head(name, kind, help);
        for (value, sample) in samples {
            self.sample(name, &[(label, value)], *sample);
        }
    }

    fn gauge(&mut self, name: &str, help: &str, sample: u64) {
        self.head(name, "gauge", help);
        self.sample(name, &[], sample);
    }

    fn counter(&mut self, name: &str, help: &str, sample: u64) {
        self.head(name, "counter", help);
        self.sample(name, &[], sample);
    }
}

fn metrics(host: &Host, health: &Health) -> String {
    let mut page = Page::default();
    let counts = health.counts();
    let version = [(env!("CARGO_PKG_VERSION"), 1)];
    page.family(
        "washlet_build_info",
        "gauge",
        "The version that runs.",
        "version",
        &version,
    );
    let ready = u64::from(health.not_ready().is_empty());
    page.gauge("washlet_ready", "Whether /readyz says so.", ready);
    let connected = u64::from(health.is_connected());
    page.gauge(
        "washlet_nats_connected",
        "Whether commands can come over NATS.",
        connected,
    );
    page.counter(
        "washlet_nats_connects_total",
        "Times that the connection for commands was made; after the first, again after a loss.",
        counts.connected,
    );
    page.counter(
        "washlet_nats_subscriptions_total",
        "Times that commands were subscribed to; after the first, again after a loss.",
        counts.subscribed,
    );
    if let Some(data) = health.data() {
        page.gauge(
            "washlet_data_nats_connected",
            "Whether the connection that components' data goes over is up.",
            u64::from(data.up),
        );
        page.counter(
            "washlet_data_nats_connects_total",
            "Times that it was made; after the first, again after a loss.",
            data.made,
        );
    }
    page.counter(
        "washlet_heartbeats_total",
        "Heartbeats published.",
        counts.heartbeats,
    );
    page.counter(
        "washlet_heartbeats_failed_total",
        "Heartbeats that could not be published.",
        counts.heartbeats_failed,
    );
    page.counter(
        "washlet_commands_total",
        "Commands answered.",
        counts.commands,
    );
    page.family(
        "washlet_workloads",
        "gauge",
        "Workloads by state.",
        "state",
        &host.states(),
    );
    page.counter(
        "washlet_workload_retries_total",
        "Times that a failed workload was started again.",
        counts.retries,
    );
    let short_of = health.pressure().borrow().clone();
    let short = RESOURCES.map(|Resource { name, .. }| (name, u64::from(short_of.contains(&name))));
    page.family(
        "washlet_pressure",
        "gauge",
        "Whether the machine is short of it.",
        "resource",
        &short,
    );
    let (declared, memory) = (host.declared_bytes(), host.sample());
    page.gauge(
        "washlet_memory_bytes",
        "Memory of the machine, or of its control group.",
        memory.memory_total,
    );
    page.gauge(
        "washlet_memory_free_bytes",
        "What could still be used of it.",
        memory.memory_free,
    );
    page.gauge(
        "washlet_memory_declared_bytes",
        "Memory that workloads declare (memoryLimitMb).",
        declared,
    );
    page.counter(
        "washlet_starts_without_room_total",
        "Starts refused because they did not fit.",
        counts.without_room,
    );
    if let Some(journal) = host.journal() {
        page.gauge(
            "washlet_journal_entries",
            "Workloads that will run after a restart.",
            journal.entries as u64,
        );
        page.gauge(
            "washlet_journal_bytes",
            "Bytes of the journal on disk.",
            journal.bytes,
        );
        page.gauge(
            "washlet_journal_quarantined",
            "Entries set aside because they could not be read.",
            journal.set_aside,
        );
    }
    let answered: Vec<_> = CLASS_NAMES.into_iter().zip(counts.answered).collect();
    page.family(
        "washlet_http_responses_total",
        "counter",
        "Responses to HTTP requests by class of their status, the host's own among them.",
        "class",
        &answered,
    );
    per_workload(&mut page, &host.busy());
    messages(&mut page, host);
    let engine = host.engine();
    let instances = engine.instances();
    page.gauge(
        "washlet_instances_max",
        "Instances that may live at once.",
        instances.max,
    );
    page.gauge(
        "washlet_instances",
        "Instances that live now, idle warm ones among them.",
        instances.live,
    );
    page.gauge(
        "washlet_calls_waiting",
        "Calls that wait for an instance.",
        instances.waiting,
    );
    let code = engine.code();
    page.counter(
        "washlet_components_compiled_total",
        "Components compiled.",
        code.compiled,
    );
    page.counter(
        "washlet_code_loaded_total",
        "Components whose compiled code was on disk.",
        code.loaded,
    );
    page.counter(
        "washlet_code_discarded_total",
        "Files of compiled code that were damaged or foreign.",
        code.discarded,
    );
    page.counter(
        "washlet_code_evicted_total",
        "Files of compiled code removed for room.",
        code.evicted,
    );
    page.gauge(
        "washlet_code_bytes",
        "Bytes of compiled code on disk.",
        code.bytes,
    );
    let artifacts = host.artifacts().usage();
    page.gauge(
        "washlet_artifact_bytes",
        "Bytes of images on disk.",
        artifacts.bytes,
    );
    page.gauge(
        "washlet_artifacts",
        "Images on disk.",
        artifacts.entries as u64,
    );
    page.0
}

fn messages(page: &mut Page, host: &Host) {
    let came = Came::ALL.map(|(name, came)| (name, host.messages(came)));
    page.family(
        "washlet_messages_total",
        "counter",
        "Messages by what they came to; with durable delivery one that failed comes again.",
        "outcome",
        &came,
    );
    let (taken, all) = host.message_turns();
    page.gauge(
        "washlet_messages_in_flight",
        "Messages that components handle now.",
        taken as u64,
    );
    page.gauge(
        "washlet_messages_in_flight_max",
        "Messages that components may handle at once; further ones wait.",
        all as u64,
    );
    page.counter(
        "washlet_nats_slow_consumers_total",
        "Messages that were dropped because too many were waiting on a connection to NATS.",
        nats::slow_consumers(),
    );
}

/// What workloads are busy with: at most as many as a host holds, and of each only what has happened.
fn per_workload(page: &mut Page, all: &[Busy]) {
    let counts: Vec<_> = all.iter().map(|busy| busy.in_flight.count()).collect();
    page.gauge(
        "washlet_calls_in_flight",
        "Calls into components under way: HTTP requests, messages and what other triggers call.",
        counts.iter().sum(),
    );
    let name = "washlet_workload_calls_in_flight";
    page.head(name, "gauge", "The same, by workload.");
    for (busy, count) in all.iter().zip(counts) {
        page.sample(name, &labels(busy), count);
    }
    let name = "washlet_workload_http_responses_total";
    let help = "Responses to HTTP requests by workload and class of their status.";
    page.head(name, "counter", help);
    for busy in all {
        let [namespace, workload, id] = labels(busy);
        for (class, count) in CLASS_NAMES.into_iter().zip(busy.in_flight.responses()) {
            if count > 0 {
                page.sample(name, &[namespace, workload, id, ("class", class)], count);
            }
        }
    }
    let name = "washlet_workload_messages_total";
    page.head(
        name,
        "counter",
        "Messages by workload and what they came to.",
    );
    for busy in all {
        let [namespace, workload, id] = labels(busy);
        for (outcome, came) in Came::ALL {
            let count = busy.in_flight.messages(came);
            if count > 0 {
                page.sample(
                    name,
                    &[namespace, workload, id, ("outcome", outcome)],
                    count,
                );
            }
        }
    }
    used(page, all);
}

/// What workloads use.
fn used(page: &mut Page, all: &[Busy]) {
    type Count = fn(&Used) -> u64;
    let counts: [(&str, &str, &str, Count); 4] = [
        (
            "washlet_workload_calls_total",
            "counter",
            "Calls of components by workload: HTTP requests and messages.",
            |used| used.calls,
        ),
        (
            "washlet_workload_memory_bytes",
            "gauge",
            "Memory of the live instances of a workload.",
            |used| used.memory_bytes,
        ),
        (
            "washlet_workload_memory_peak_bytes",
            "gauge",
            "The most that it was.",
            |used| used.memory_bytes_peak,
        ),
        (
            "washlet_workload_log_lines_dropped_total",
            "counter",
            "Lines of a workload that were left out of the log, because there were too many.",
            |used| used.lines_dropped,
        ),
    ];
    for (name, kind, help, count) in counts {
        page.head(name, kind, help);
        for busy in all.iter().filter(|busy| count(&busy.used) > 0) {
            page.sample(name, &labels(busy), count(&busy.used));
        }
    }
    type Time = fn(&Used) -> Duration;
    let times: [(&str, &str, Time); 2] = [
        (
            "washlet_workload_cpu_seconds_total",
            "How long calls of a workload have computed.",
            |used| used.cpu,
        ),
        (
            "washlet_workload_cpu_delayed_seconds_total",
            "How long calls of a workload were held back by its share of the processors (cpuLimit).",
            |used| used.delayed,
        ),
    ];
    for (name, help, time) in times {
        page.head(name, "counter", help);
        for busy in all.iter().filter(|busy| !time(&busy.used).is_zero()) {
            page.sample(name, &labels(busy), time(&busy.used).as_secs_f64());
        }
    }
}

fn labels(busy: &Busy) -> [(&str, &str); 3] {
    [
        ("namespace", &busy.spec.namespace),
        ("workload", &busy.spec.name),
        ("workload_id", busy.spec.id.as_str()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_in_prometheus_format() {
        let mut page = Page::default();
        page.gauge("one", "The first.", 1);
        page.family("two", "counter", "By kind.", "kind", &[("a", 2), ("b", 3)]);
        let expected = "# HELP one The first.\n# TYPE one gauge\none 1\n\
            # HELP two By kind.\n# TYPE two counter\ntwo{kind=\"a\"} 2\ntwo{kind=\"b\"} 3\n";
        assert_eq!(page.0, expected);
    }

    #[test]
    fn labels_are_whatever_people_name_things() {
        let mut page = Page::default();
        page.sample("one", &[("a", "say \"hi\"\n"), ("b", "c:\\d")], 1);
        assert_eq!(page.0, "one{a=\"say \\\"hi\\\"\\n\",b=\"c:\\\\d\"} 1\n");
    }
}
