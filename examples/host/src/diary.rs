//! An interface: serves `example:diary/lines@0.1.0` over any storage that has key-value.

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use capabilities::keyvalue::{Error, Guard, KeyValueStore, Put, Result};
use capabilities::plugin::OpenError;
use capabilities::report;
use engine::Ctx;
use engine::interface::{Interface, InterfaceError, Need, instance};
use engine::wasmtime::component::{Linker, LinkerInstance};
use engine::wasmtime::{self, StoreContextMut};
use engine::wit::{Import, Served};

/// The key that counts lines.
const COUNT: &str = "count";

/// Serves diaries.
pub struct Diary;

#[async_trait]
impl Interface for Diary {
    fn serves(&self) -> &'static [Served] {
        &[Served {
            namespace: "example",
            package: "diary",
            interfaces: &["lines"],
            version: "0.1.0",
        }]
    }

    /// Reads the setting `book`, the bucket of the lines; the storage reads its own.
    async fn link(
        &self,
        linker: &mut Linker<Ctx>,
        imports: &[Import],
        need: &Need<'_>,
    ) -> std::result::Result<(), InterfaceError> {
        for import in imports {
            // There is one: the host has refused components that import what their workload does not list.
            let Some(entry) = need.entry(import) else {
                continue;
            };
            let name = entry.config.get("book").map_or("diary", String::as_str);
            let book = need
                .open("keyvalue", entry, &["book"], |plugin, ask| async move {
                    let store = plugin.keyvalue(&ask).await?;
                    let opened = store.open(name).await;
                    opened.map_err(|error| OpenError::Storage(error.into()))?;
                    Ok(Book {
                        store,
                        name: name.to_owned(),
                    })
                })
                .await?;
            instance(linker, import, |lines| add(lines, &Arc::new(book)))?;
        }
        Ok(())
    }
}

/// Where the lines of one entry are.
struct Book {
    store: Arc<dyn KeyValueStore>,
    name: String,
}

impl Book {
    async fn add(&self, text: String) -> Result<u64> {
        // Numbers are exact, however many write: what serves increments sees to that.
        let number = self.count(1).await?;
        let put = Put {
            key: &key(number),
            value: text.into(),
            guard: Guard::Any,
            ttl: None,
        };
        self.store.put(&self.name, put).await?;
        Ok(number)
    }

    async fn get(&self, number: u64) -> Result<Option<String>> {
        let entry = self.store.get(&self.name, &key(number)).await?;
        let text = entry.map(|entry| String::from_utf8(entry.value.into()));
        text.transpose()
            .map_err(|error| Error::Internal(error.into()))
    }

    /// Adds `more` to the number of lines; gives the sum.
    async fn count(&self, more: i64) -> Result<u64> {
        let count = self.store.increment(&self.name, COUNT, more).await?;
        u64::try_from(count).map_err(|error| Error::Internal(error.into()))
    }
}

fn key(number: u64) -> String {
    format!("line-{number}")
}

/// Defines the functions of `lines`, each with the book in it: nothing is looked up when a component calls.
fn add(lines: &mut LinkerInstance<'_, Ctx>, book: &Arc<Book>) -> wasmtime::Result<()> {
    let this = Arc::clone(book);
    lines.func_wrap_async(
        "add",
        move |_: StoreContextMut<'_, Ctx>, (text,): (String,)| {
            let book = Arc::clone(&this);
            answer(async move { book.add(text).await })
        },
    )?;
    let this = Arc::clone(book);
    lines.func_wrap_async(
        "get",
        move |_: StoreContextMut<'_, Ctx>, (number,): (u64,)| {
            let book = Arc::clone(&this);
            answer(async move { book.get(number).await })
        },
    )?;
    let this = Arc::clone(book);
    lines.func_wrap_async("last", move |_: StoreContextMut<'_, Ctx>, (): ()| {
        let book = Arc::clone(&this);
        answer(async move { book.count(0).await })
    })
}

/// What a function of an interface gives: a trap, which none of these has, or one value, here a `result` whose
/// error is text.
type Answer<T> = wasmtime::Result<(std::result::Result<T, String>,)>;

fn answer<T: 'static>(
    done: impl Future<Output = Result<T>> + Send + 'static,
) -> Box<dyn Future<Output = Answer<T>> + Send> {
    Box::new(async move { Ok((done.await.map_err(|error| report(&error)),)) })
}
