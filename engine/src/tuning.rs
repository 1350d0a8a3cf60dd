//! How wasmtime is set up: the layout of memories, which compiled code depends on, and the pool of
//! instances, which it does not.

use std::fmt;
use std::str::FromStr;
use wasmtime::{Enabled, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::Error;
use crate::limits::TABLE_ELEMENTS_MAX;
use crate::runner::Wasi;

/// Address space of one memory with [`Layout::Checked`], in bytes, and so its largest size.
pub const CHECKED_MEMORY_BYTES_MAX: u64 = 64 << 20;

/// The fewest instances a pool is made for.
const INSTANCES_MIN: u32 = 8;

/// What one instance of a busy component takes of memory, in bytes, when the size of a pool is chosen.
const INSTANCE_BYTES: u64 = 4 << 20;

/// Bytes of a memory that are reset in place, where the kernel says which pages are dirty.
const KEEP_BYTES: u64 = 1 << 20;

/// The same where it does not: all of them are written again, dirty or not.
const KEEP_BLIND_BYTES: u64 = 2 << 20;

/// The share of the machine's memory that instances which nobody uses may keep.
const KEEP_SHARE: u64 = 32;

/// How the memories of components lie in the host's address space. Compiled code depends on it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Layout {
    /// Each memory has 4 GiB and guard pages: no access is checked, but the host needs terabytes of
    /// address space, and growing a memory is a system call.
    #[default]
    Guarded,
    /// Each memory has [`CHECKED_MEMORY_BYTES_MAX`]: every access is checked. For small address spaces,
    /// and for components that grow their memory in each call.
    Checked,
}

impl Layout {
    /// The name on a command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Guarded => "guarded",
            Self::Checked => "checked",
        }
    }

    /// What the compiler has to know; without an allocator.
    pub(crate) fn config(self, wasi: Wasi) -> wasmtime::Config {
        let mut config = wasmtime::Config::new();
        config.epoch_interruption(true);
        // Labelled imports: one interface, several backends.
        config.wasm_component_model_implements(true);
        // WASI 0.2 would pay for concurrency without using it.
        config.concurrency_support(wasi == Wasi::P3);
        if self == Self::Checked {
            config
                .signals_based_traps(false)
                .memory_guard_size(0)
                .memory_reservation(CHECKED_MEMORY_BYTES_MAX)
                .memory_reservation_for_growth(0);
        }
        config
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no [`Layout`]'s.
#[derive(thiserror::Error, Debug, PartialEq, Eq)]
#[error("there is no layout '{0}' (there are: guarded, checked)")]
pub struct UnknownLayout(String);

impl FromStr for Layout {
    type Err = UnknownLayout;

    fn from_str(name: &str) -> Result<Self, UnknownLayout> {
        [Self::Guarded, Self::Checked]
            .into_iter()
            .find(|layout| layout.name() == name)
            .ok_or_else(|| UnknownLayout(name.to_owned()))
    }
}

/// What is asked of a pool.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) layout: Layout,
    pub(crate) instances_max: u32,
    pub(crate) memory_bytes_max: u64,
    /// Memory of the machine, or of this process's share of it.
    pub(crate) machine_bytes: u64,
    /// Address space of this process; half of it is for all that is no pool.
    pub(crate) address_bytes: u64,
    /// Whether the kernel tells which pages are dirty (Linux 6.7 and newer).
    pub(crate) pagemap: bool,
}

/// One pool to try.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pool {
    pub(crate) layout: Layout,
    pub(crate) instances: u32,
    pub(crate) memory_bytes_max: u64,
    keep_bytes: u64,
    /// Slots that nobody uses and that keep their pages.
    warm_slots: u32,
    pagemap: bool,
}

impl Wanted {
    /// The pools to try, the best first: what the machine's memory bears, then ever less address space.
    fn pools(self) -> impl Iterator<Item = Pool> {
        let most = self.affordable();
        let sizes = [1, 8, 64].map(|part| (most / part).max(INSTANCES_MIN));
        let guarded = sizes.map(|instances| (Layout::Guarded, instances));
        let checked = sizes.map(|instances| (Layout::Checked, instances));
        guarded
            .into_iter()
            .filter(move |_| self.layout == Layout::Guarded)
            .chain(checked)
            .map(move |(layout, instances)| self.pool(layout, instances))
            .filter(move |pool| pool.address_bytes() <= self.address_bytes / 2)
    }

    /// The instances that the machine's memory bears.
    fn affordable(self) -> u32 {
        let affordable = u32::try_from(self.machine_bytes / INSTANCE_BYTES).unwrap_or(u32::MAX);
        self.instances_max.min(affordable).max(INSTANCES_MIN)
    }

    fn pool(self, layout: Layout, instances: u32) -> Pool {
        let keep_bytes = match self.pagemap {
            true => KEEP_BYTES,
            false => KEEP_BLIND_BYTES,
        };
        let warm = self.machine_bytes / KEEP_SHARE / keep_bytes;
        Pool {
            layout,
            instances,
            memory_bytes_max: match layout {
                Layout::Guarded => self.memory_bytes_max,
                Layout::Checked => self.memory_bytes_max.min(CHECKED_MEMORY_BYTES_MAX),
            },
            keep_bytes,
            warm_slots: u32::try_from(warm).unwrap_or(u32::MAX).clamp(4, 128),
            pagemap: self.pagemap,
        }
    }

    /// The largest pool this machine holds; at last, memory on demand.
    ///
    /// # Errors
    /// [`Error::Start`] when wasmtime does not even start without a pool.
    pub(crate) fn allocate(self, wasi: Wasi) -> Result<(wasmtime::Engine, Pool), Error> {
        // The first that is wanted may not even have been tried.
        let wanted = self.pool(self.layout, self.affordable());
        let mut refused = (self.pools().next() != Some(wanted))
            .then(|| format!("half of an address space of {} bytes", self.address_bytes));
        for pool in self.pools() {
            match wasmtime::Engine::new(&pool.config(wasi)) {
                Ok(engine) => {
                    let Pool {
                        layout,
                        instances,
                        memory_bytes_max,
                        ..
                    } = pool;
                    match refused {
                        None => tracing::info!(
                            %layout, instances, memory_bytes_max, pagemap = self.pagemap,
                            "instances come from a pool"
                        ),
                        Some(refused) => tracing::warn!(
                            %layout, instances, memory_bytes_max, pagemap = self.pagemap, refused,
                            "instances come from a smaller pool than wanted: no larger one fits this \
                             machine's address space"
                        ),
                    }
                    return Ok((engine, pool));
                }
                Err(error) => refused = Some(format!("{error:#}")),
            }
        }
        tracing::warn!(
            refused,
            "no pool of instances fits this machine; memory is allocated on demand"
        );
        // Few, because each still needs its memory's address space.
        let pool = self.pool(Layout::Checked, INSTANCES_MIN);
        let engine = wasmtime::Engine::new(&pool.layout.config(wasi))
            .map_err(|error| Error::Start(format!("{error:#}")))?;
        Ok((engine, pool))
    }
}

impl Pool {
    /// Address space that it takes, nearly: its memories, tables and stacks.
    fn address_bytes(self) -> u64 {
        let memory = match self.layout {
            Layout::Guarded => self.memory_bytes_max.max(4 << 30),
            Layout::Checked => CHECKED_MEMORY_BYTES_MAX,
        };
        let instance = memory.saturating_mul(2).saturating_add(8 << 20);
        instance.saturating_mul(self.instances.into())
    }

    fn config(self, wasi: Wasi) -> wasmtime::Config {
        let keep = usize::try_from(self.keep_bytes).unwrap_or(usize::MAX);
        // An instance has one stack; an asynchronous one has one for each of its tasks that waits in a
        // synchronous call.
        let stacks = match wasi {
            Wasi::P2 => 1,
            Wasi::P3 => 4,
        };
        let mut pool = PoolingAllocationConfig::new();
        // A component is about four core instances, with one or two memories and tables.
        pool.total_component_instances(self.instances)
            .total_core_instances(self.instances.saturating_mul(6))
            .total_memories(self.instances.saturating_mul(2))
            .total_tables(self.instances.saturating_mul(4))
            .total_stacks(self.instances.saturating_mul(stacks))
            // What no component needs, none may have: one could take the whole pool.
            .max_core_instances_per_component(64)
            .max_memories_per_component(16)
            .max_tables_per_component(64)
            .table_elements(TABLE_ELEMENTS_MAX)
            .max_memory_size(usize::try_from(self.memory_bytes_max).unwrap_or(usize::MAX))
            .max_unused_warm_slots(self.warm_slots)
            // Resetting dirty pages in place costs far less than giving them back and faulting them in.
            .linear_memory_keep_resident(keep)
            .table_keep_resident(keep)
            .pagemap_scan(match self.pagemap {
                true => Enabled::Yes,
                false => Enabled::No,
            });
        let mut config = self.layout.config(wasi);
        config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool));
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const WANTED: Wanted = Wanted {
        layout: Layout::Guarded,
        instances_max: 1_000,
        memory_bytes_max: 4 << 30,
        machine_bytes: 64 << 30,
        address_bytes: u64::MAX,
        pagemap: true,
    };

    #[test]
    fn a_pool_is_no_larger_than_the_machine() {
        let first = |machine_bytes| {
            let wanted = Wanted {
                machine_bytes,
                ..WANTED
            };
            wanted.pools().next().unwrap()
        };
        assert_eq!(first(64 << 30).instances, 1_000);
        let small = first(256 << 20);
        assert_eq!((small.instances, small.warm_slots), (64, 8));
        assert_eq!(first(0).instances, INSTANCES_MIN);
    }

    #[test]
    fn smaller_pools_follow_with_ever_less_address_space() {
        let pools: Vec<_> = WANTED
            .pools()
            .map(|pool| (pool.layout, pool.instances))
            .collect();
        use Layout::{Checked, Guarded};
        assert_eq!(
            pools,
            [
                (Guarded, 1_000),
                (Guarded, 125),
                (Guarded, 15),
                (Checked, 1_000),
                (Checked, 125),
                (Checked, 15)
            ]
        );
        let checked = Wanted {
            layout: Checked,
            ..WANTED
        };
        let mut pools = checked.pools();
        assert!(pools.all(|pool| pool.layout == Checked));
        let pool = checked.pools().next().unwrap();
        assert_eq!(pool.memory_bytes_max, CHECKED_MEMORY_BYTES_MAX);
    }

    #[test]
    fn a_pool_leaves_half_of_the_address_space() {
        let first = |address_bytes| {
            let wanted = Wanted {
                address_bytes,
                ..WANTED
            };
            wanted
                .pools()
                .next()
                .map(|pool| (pool.layout, pool.instances))
        };
        assert_eq!(first(8 << 40), Some((Layout::Guarded, 125)));
        assert_eq!(first(64 << 30), Some((Layout::Checked, 125)));
        assert_eq!(first(1 << 30), None);
    }

    #[test]
    fn an_old_kernel_resets_more_in_place() {
        let old = Wanted {
            pagemap: false,
            ..WANTED
        };
        let pool = old.pools().next().unwrap();
        assert_eq!((pool.keep_bytes, pool.pagemap), (KEEP_BLIND_BYTES, false));
        // And works here, whatever this kernel can do.
        wasmtime::Engine::new(&old.pool(Layout::Guarded, 8).config(Wasi::P2)).unwrap();
    }

    #[test]
    fn code_depends_on_the_layout_and_the_engine_alone() {
        let hash = |config: &wasmtime::Config| {
            use std::hash::{DefaultHasher, Hash, Hasher};
            let mut hasher = DefaultHasher::new();
            let engine = wasmtime::Engine::new(config).unwrap();
            engine.precompile_compatibility_hash().hash(&mut hasher);
            hasher.finish()
        };
        let mut seen = std::collections::BTreeSet::new();
        for layout in [Layout::Guarded, Layout::Checked] {
            for wasi in Wasi::ALL {
                let alone = hash(&layout.config(wasi));
                let pool = WANTED.pool(layout, 16);
                assert_eq!(hash(&pool.config(wasi)), alone, "{layout} {wasi:?}");
                assert!(seen.insert(alone), "{layout} {wasi:?}");
            }
        }
    }

    #[test]
    fn layouts_are_named() {
        for layout in [Layout::Guarded, Layout::Checked] {
            assert_eq!(layout.to_string().parse(), Ok(layout));
        }
        assert!("reserved".parse::<Layout>().is_err());
    }
}
