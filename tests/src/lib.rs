//! The fleet under test: real servers and real hosts as child processes, on free ports.
//!
//! Everything started here is killed when its handle is dropped, and listens on 127.0.0.1 only.
//! Nothing here knows wasm or the inside of a host: it speaks NATS, HTTP and signals.
//!
//! | module | what it starts or does |
//! |---|---|
//! | [`washlet`] | hosts: the real binary `wash host`, driven over NATS |
//! | [`workload`] | what to ask a host to run |
//! | [`http`] | requests to a host |
//! | [`nats`] | a `nats-server` with JetStream |
//! | [`accounts`] | who may connect to it, and until when |
//! | [`postgres`] | a Postgres server |
//! | [`registry`] | an OCI registry |
//! | [`balance`] | clients of a load balancer |
//! | [`proxy`] | a TCP proxy that counts, pauses, slows down and cuts |
//! | [`process`] | a child process and what it printed |
//! | [`tools`] | where the server binaries are |
//! | [`fuzz`] | input that nobody meant, for decoders |
//! | [`wait`] | waits on a state, with a deadline |

pub mod accounts;
pub mod balance;
pub mod fuzz;
pub mod http;
pub mod nats;
pub mod postgres;
pub mod process;
pub mod proxy;
pub mod registry;
pub mod tools;
pub mod wait;
pub mod washlet;
pub mod workload;
