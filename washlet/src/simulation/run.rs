//! One seed: processes one after the other on the same disk, each ended in some way, the last in peace.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use capabilities::memory::Memory;
use capabilities::plugin::Plugins;
use engine::allowed_hosts::AllowedHosts;
use engine::interface::Interfaces;
use engine::{Engine, Grant, Layout, Outbound, Owner, Reuse, Runnable, TrustRoots, Turns};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use subjects::wire::WorkloadState;
use subjects::{HostId, WorkloadId};
use tempfile::TempDir;
use tokio::runtime::{Builder, Handle};
use tokio::time::{Instant, sleep, sleep_until};

use super::bus::Line;
use super::ledger::{Asked, Workload};
use super::world::{Chance, End, Faults, Held as Counted, SimulatedDisk, World};
use super::{ORPHAN_AFTER, WORKLOADS, image, route, workload_id};
use crate::artifact::{Artifacts, Registries};
use crate::config::{ArtifactConfig, Identity, Limits};
use crate::control::nats::Control;
use crate::drain::Drain;
use crate::health::Health;
use crate::host::{Host, Parts};
use crate::journal::Journal;
use crate::seal::SealKey;
use crate::trigger::Triggers;
use crate::trigger::http::{Found, Routes};
use crate::workload::actor::{Actor, Held, Runner};
use crate::workload::spec::ComponentSpec;

/// Starts that may be unanswered.
const STARTS_IN_QUEUE: usize = 4;

/// Longer than anything that was begun may take.
const QUIET: Duration = Duration::from_secs(150);

/// How long a command may take when nothing goes wrong.
const SOON: Duration = Duration::from_secs(10);

/// Contents of a workload.
const CONTENTS: u64 = 3;

/// What all seeds share.
pub(super) struct Fixed {
    engine: Engine,
    artifacts: Artifacts,
    runnable: Runnable,
    seal_key: Arc<SealKey>,
    _dir: TempDir,
}

impl Fixed {
    /// With `guest` as the one component there is; nobody calls it.
    pub(super) fn new(guest: &[u8]) -> Self {
        let plugins = Plugins::new("memory").with(Memory::new(1 << 20));
        let config = engine::Config {
            layout: Layout::Checked,
            memory_bytes_max: 1 << 30,
            instances_max: 4,
            machine_bytes: 4 << 30,
            address_bytes: u64::MAX,
            instance_wait: SOON,
            call_cpu_max: SOON,
            call_time_max: SOON,
            compiles_in_flight: 1,
            compiler: None,
            code_dir: None,
            code_bytes_max: 0,
            flat_names: false,
            trust_roots: TrustRoots::load(true, &[]).unwrap(),
            outbound: Outbound {
                per_workload: 1,
                per_host: 1,
                wait: SOON,
            },
        };
        let engine = Engine::new(config, plugins, Interfaces::default()).unwrap();
        let grant = Grant {
            owner: Arc::new(Owner {
                namespace: "ns".to_owned(),
                workload: "w".to_owned(),
                workload_id: "w".to_owned(),
                component: "c".to_owned(),
            }),
            declared: Arc::new([]),
            config: BTreeMap::new(),
            environment: BTreeMap::new(),
            allowed_hosts: AllowedHosts::default(),
            memory_bytes_max: 1 << 30,
            cpu_millis_max: None,
            reuse: Reuse::NEVER,
            outbound: engine.turns(),
        };
        let runtime = Builder::new_current_thread().enable_all().build().unwrap();
        let runnable = runtime.block_on(async {
            let bytes = guest.to_vec().into();
            let compiled = engine.compile("guest", bytes).await.unwrap();
            engine.link(&compiled, grant).await.unwrap()
        });
        let dir = TempDir::new().unwrap();
        let artifacts = ArtifactConfig {
            dir: dir.path().to_owned(),
            budget_bytes: 0,
            allow_insecure: false,
            ca: Vec::new(),
            registries: Registries::new(),
            pull_timeout: SOON,
            allow_file: false,
        };
        Self {
            artifacts: Artifacts::open(artifacts, &Limits::default()).unwrap(),
            engine,
            runnable,
            seal_key: Arc::new(SealKey::ephemeral().unwrap()),
            _dir: dir,
        }
    }
}

/// What came of a seed.
pub(super) struct Outcome {
    pub(super) violations: Vec<String>,
    pub(super) trace: Vec<String>,
}

/// Something that happens to a process from outside.
#[derive(Clone, Copy)]
enum Event {
    /// A copy of a command arrives.
    Arrives(usize),
    /// The server forgets what the host subscribed to.
    Deaf,
    /// Every workload that runs gets calls.
    Calls,
}

/// How one process goes.
struct Plan {
    faults: Faults,
    commands: u64,
    /// When all of them are sent, in milliseconds.
    within_ms: u64,
    end: End,
    /// It ends while commands are under way.
    early: bool,
}

impl Plan {
    fn draw(chance: &Chance) -> Self {
        let rate = || match chance.below(2) {
            0 => 0,
            _ => 3 + chance.below(20),
        };
        let among = |choices: &[u64]| choices[chance.below(choices.len() as u64) as usize];
        Self {
            faults: Faults {
                disk_fails: rate(),
                message_lost: rate(),
                message_twice: rate(),
                reply_fails: rate(),
                start_fails: rate(),
                start_panics: 4 * rate(),
                disk_ms: among(&[0, 20, 2_000]),
                message_ms: among(&[0, 50, 2_000]),
                reply_ms: among(&[0, 500, 8_000]),
                start_ms: among(&[0, 100, 3_000, 12_000]),
            },
            commands: 5 + chance.below(25),
            within_ms: among(&[50, 500, 5_000, 60_000]),
            end: match chance.below(4) {
                0 => End::Drained,
                1 => End::Killed,
                _ => End::PowerCut,
            },
            early: chance.one_in(2),
        }
    }

    /// What happens when, in milliseconds.
    fn events(&self, world: &World) -> Vec<(u64, Event)> {
        let (chance, faults) = (&world.chance, &self.faults);
        let mut events = Vec::new();
        for _ in 0..self.commands {
            let workload = chance.below(WORKLOADS as u64) as Workload;
            let asked = match chance.below(20) {
                0..9 => Asked::Start(workload, chance.below(CONTENTS)),
                9..15 => Asked::Stop(workload),
                15..17 => Asked::Status(workload),
                17 => Asked::Heartbeat,
                18 => Asked::List,
                _ => Asked::Noise,
            };
            let copies = match (
                chance.one_in(faults.message_lost),
                chance.one_in(faults.message_twice),
            ) {
                (true, _) => 0,
                (_, true) => 2,
                _ => 1,
            };
            let sent = chance.below(self.within_ms);
            for _ in 0..copies {
                let late = chance.pause(faults.message_ms).as_millis() as u64;
                let copy = world.ledger().send(asked);
                events.push((sent + late, Event::Arrives(copy)));
            }
        }
        for (times, event) in [(3, Event::Deaf), (2, Event::Calls)] {
            if chance.one_in(times) {
                events.push((chance.below(self.within_ms), event));
            }
        }
        events.sort_by_key(|(at, _)| *at);
        events
    }
}

/// Runs one seed.
pub(super) fn seed(fixed: &Fixed, seed: u64) -> Outcome {
    let world = World::new(seed);
    let all = || {
        for _ in 0..=world.chance.below(4) {
            let plan = Plan::draw(&world.chance);
            process(fixed, &world, Some(&plan));
        }
        process(fixed, &world, None);
    };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(all)) {
        let text = panic.downcast_ref::<String>().cloned();
        world
            .ledger()
            .violate(text.unwrap_or_else(|| "it panicked".to_owned()));
    }
    let violations = world.ledger().violations().to_vec();
    Outcome {
        violations,
        trace: world.take_trace(),
    }
}

/// One process from its start to its end; the last one without a plan.
fn process(fixed: &Fixed, world: &Arc<World>, plan: Option<&Plan>) {
    let mut builder = Builder::new_current_thread();
    // So that it can end after any poll of any task.
    let runtime = builder
        .enable_time()
        .start_paused(true)
        .event_interval(1)
        .build()
        .unwrap();
    let end = runtime.block_on(async {
        // One of the process before may be left.
        let _ = world.crash.notified().now_or_never();
        let chance = &world.chance;
        let end = plan.map_or(End::Drained, |plan| plan.end);
        let early = plan.is_some_and(|plan| plan.early && plan.end != End::Drained);
        let polls = if chance.one_in(2) {
            0
        } else {
            chance.below(40)
        };
        world.begin(early.then(|| 1 + chance.below(100)), polls);
        world.set_faults(plan.map_or_else(Faults::default, |plan| plan.faults));
        world.trace(format_args!("process begins, will be {end:?}"));
        tokio::select! {
            biased;
            () = world.crashed() => {}
            () = live(fixed, world, plan) => {}
        }
        world.trace(format_args!("process ends: {end:?}"));
        end
    });
    // Nothing of it acts any more; then its tasks are dropped where they are.
    world.end(end);
    drop(runtime);
    let held = world.held.load(Ordering::Relaxed);
    if held > 0 {
        world
            .ledger()
            .violate(format!("{held} artifacts are held by nobody"));
    }
}

/// What a process is made of.
struct Process<'a> {
    world: &'a Arc<World>,
    host: Host,
    journal: Arc<Journal>,
    line: Line,
    routes: Routes,
    control: Drain,
    workloads: Drain,
    guests: Drain,
}

async fn live(fixed: &Fixed, world: &Arc<World>, plan: Option<&Plan>) {
    let process = Process::start(fixed, world);
    let Some(plan) = plan else {
        return process.last().await;
    };
    let began = Instant::now();
    let events = plan.events(world);
    let stop_after = match plan.early {
        true => world.chance.below(events.len() as u64) as usize,
        false => events.len(),
    };
    for (at, event) in events.into_iter().take(stop_after) {
        sleep_until(began + Duration::from_millis(at)).await;
        process.happens(event);
    }
    if !plan.early {
        sleep(QUIET).await;
        process.check(plan.faults.disk_fails == 0);
    }
    match plan.end {
        End::Drained => process.drain().await,
        // Of those that are to end early, one that came to rest.
        _ if plan.early => sleep(QUIET).await,
        _ => {}
    }
}

impl<'a> Process<'a> {
    fn start(fixed: &Fixed, world: &'a Arc<World>) -> Self {
        let disk = Box::new(SimulatedDisk(Arc::clone(world)));
        let journal = Arc::new(Journal::on(disk, &[7; 32]).unwrap());
        let entries = journal.read().unwrap();
        let mut found = BTreeMap::new();
        for entry in &entries {
            let workload = (0..WORKLOADS).find(|number| workload_id(*number) == entry.id.as_str());
            let world = entry.workload.wit_world.as_ref();
            let content = (0..CONTENTS).find(|content| {
                world.is_some_and(|world| world.components[0].image == image(*content))
            });
            found.insert(workload.unwrap(), content.unwrap());
        }
        world.trace(format_args!("the journal has {found:?}"));
        {
            let mut ledger = world.ledger();
            for workload in 0..WORKLOADS {
                ledger.check(workload, found.get(&workload).copied(), "after a restart");
            }
            ledger.restart(&found);
        }
        let id = HostId::new("host").unwrap();
        let [control, workloads, guests] = [(); 3].map(|()| Drain::new(Handle::current()));
        let (routes, health) = (Routes::default(), Health::default());
        let limits = Limits {
            starts_in_queue: STARTS_IN_QUEUE,
            start_reply: Duration::from_secs(5),
            stop_grace: Duration::from_secs(2),
            ..Limits::default()
        };
        let parts = Parts {
            identity: Identity {
                id: id.clone(),
                hostname: "host".to_owned(),
                group: "default".to_owned(),
                environment: String::new(),
                labels: BTreeMap::new(),
            },
            engine: fixed.engine.clone(),
            artifacts: fixed.artifacts.clone(),
            routes: routes.clone(),
            triggers: Triggers::default(),
            seal_key: Arc::clone(&fixed.seal_key),
            http_port: Some(80),
            any_host: false,
            health: health.clone(),
            state: None,
            journal: Some(Arc::clone(&journal)),
            orphan_after: ORPHAN_AFTER,
            limits,
            default_allowed_hosts: Vec::new(),
            control: workloads.clone(),
            draining: control.clone(),
            guests: guests.clone(),
        };
        let runner = SimulatedRunner {
            world: Arc::clone(world),
            runnable: fixed.runnable.clone(),
        };
        let host = Host::with_runner(parts, Arc::new(runner));
        host.restore(entries);
        let line = Line::new(Arc::clone(world), id.clone());
        let commands = Control {
            client: line.clone(),
            health,
            host: id,
            heartbeat_interval: Duration::from_secs(15),
            starts_in_queue: STARTS_IN_QUEUE,
            // Whatever was begun has the time to be answered.
            grace: QUIET,
            restore_within: Duration::from_secs(60),
            ready: None,
        };
        let (answer, drain) = (Arc::new(host.clone()), control.clone());
        control.spawn("control", async move {
            commands.run(answer, drain).await.unwrap();
        });
        Self {
            world,
            host,
            journal,
            line,
            routes,
            control,
            workloads,
            guests,
        }
    }

    fn happens(&self, event: Event) {
        match event {
            Event::Arrives(copy) => self.line.arrive(copy),
            Event::Deaf => self.line.lose(),
            Event::Calls => {
                for busy in self.host.busy() {
                    let (token, time) = (busy.in_flight.token(), self.world.chance.pause(4_000));
                    self.guests.spawn("call", async move {
                        token.run(sleep(time)).await;
                    });
                }
            }
        }
    }

    fn violate(&self, what: String) {
        self.world.ledger().violate(what);
    }

    /// Nothing is under way: all is answered, and as was said.
    fn check(&self, journaled: bool) {
        let mut ledger = self.world.ledger();
        ledger.check_answered();
        let list = self.host.list().workloads;
        for workload in 0..WORKLOADS {
            let summary = list
                .iter()
                .find(|summary| summary.workload_id == workload_id(workload));
            let found = summary.and_then(|summary| {
                (0..CONTENTS).find(|content| summary.components[0].image == image(*content))
            });
            ledger.check(workload, found, "when nothing is under way");
            let wanted = self
                .journal
                .wants(&WorkloadId::new(workload_id(workload)).unwrap());
            if journaled && wanted != found.is_some() {
                ledger.violate(format!(
                    "w{workload} is {found:?}, but wanted after a restart: {wanted}"
                ));
            }
            let state = summary.map(|summary| summary.state);
            let reached = matches!(self.routes.find(Some(&route(workload))), Found::Route(_));
            let as_said = match state {
                Some(WorkloadState::Running) => reached,
                Some(WorkloadState::Error) | None => !reached,
                _ => false,
            };
            if !as_said {
                ledger.violate(format!("w{workload} is {state:?}, and reached: {reached}"));
            }
        }
    }

    /// Takes the process down as `Washlet::drain` does; everything ends by itself.
    async fn drain(&self) {
        let say = |what: &str, outcome: Result<(), crate::drain::Overdue>| {
            if let Err(overdue) = outcome {
                self.violate(format!("{what}: {overdue}"));
            }
        };
        say("control", self.control.drain(2 * QUIET).await);
        self.host.stop_all(QUIET).await;
        say("workloads", self.workloads.drain(QUIET).await);
        say("calls", self.guests.drain(QUIET).await);
        self.world.ledger().check_answered();
        self.check_empty();
    }

    fn check_empty(&self) {
        let left = self.host.list().workloads.len();
        let components = self.host.heartbeat().component_count;
        let held = self.world.held.load(Ordering::Relaxed);
        let failed = self
            .host
            .states()
            .into_iter()
            .map(|(name, count)| match name {
                "failed" => count as usize,
                _ => 0,
            });
        // What failed keeps its place until it is asked to go.
        if left != failed.sum::<usize>() || components + held as u64 > 0 {
            self.violate(format!(
                "{left} workloads, {components} components, {held} artifacts are left"
            ));
        }
        let leads = |workload: &Workload| {
            !matches!(self.routes.find(Some(&route(*workload))), Found::Unknown)
        };
        if let Some(workload) = (0..WORKLOADS).find(leads) {
            self.violate(format!("a route to w{workload} is left"));
        }
    }

    /// Sends `asked`, which must be acknowledged soon.
    async fn ask(&self, asked: Asked) {
        let copy = self.world.ledger().send(asked);
        self.line.arrive(copy);
        sleep(SOON).await;
        if !self.world.ledger().is_firm(copy) {
            self.violate(format!(
                "{asked:?} was not acknowledged, though nothing goes wrong"
            ));
        }
    }

    /// Nothing goes wrong any more: everything comes up, can be started more often than there are permits,
    /// and stopped.
    async fn last(self) {
        sleep(QUIET).await;
        self.check(true);
        for turn in 0..2 * STARTS_IN_QUEUE as u64 {
            for workload in 0..WORKLOADS {
                self.ask(Asked::Start(workload, turn % CONTENTS)).await;
            }
        }
        self.check(true);
        for workload in 0..WORKLOADS {
            self.ask(Asked::Stop(workload)).await;
        }
        self.check(true);
        let (usage, files) = (self.journal.usage(), self.world.files());
        if usage.entries + files.len() > 0 || usage.bytes > 0 {
            self.violate(format!("the journal has {usage:?}, the disk {files:?}"));
        }
        let left = self.host.list().workloads.len();
        if left > 0 {
            self.violate(format!("{left} workloads are left"));
        }
        self.check_empty();
        self.drain().await;
    }
}

/// Components that are ready after a while, or not at all.
struct SimulatedRunner {
    world: Arc<World>,
    runnable: Runnable,
}

impl Runner for SimulatedRunner {
    fn prepare<'a>(
        &'a self,
        actor: &'a Actor,
        _: &'a ComponentSpec,
        _: &'a Turns,
    ) -> BoxFuture<'a, Result<(Runnable, Held), String>> {
        let id = &actor.spec.id;
        async move {
            let (world, held) = (&self.world, Counted::new(&self.world));
            let faults = world.faults();
            sleep(world.chance.pause(faults.start_ms)).await;
            if world.chance.one_in(faults.start_fails) {
                world.trace(format_args!("runner: {id} fails"));
                return Err("the simulation wants it so".to_owned());
            }
            if world.chance.one_in(faults.start_panics) {
                world.trace(format_args!("runner: {id} panics"));
                // Without the words of a panic that nobody wanted.
                std::panic::resume_unwind(Box::new("the simulation wants it so"));
            }
            world.trace(format_args!("runner: {id} is ready"));
            Ok((self.runnable.clone(), Box::new(held) as Held))
        }
        .boxed()
    }
}
