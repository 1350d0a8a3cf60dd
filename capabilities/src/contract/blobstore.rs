//! The cases of [`BlobStore`].

use bytes::Bytes;
use futures::future::join_all;
use futures::stream::{self, StreamExt};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::{Case, Cases, Failed, ask, same, want};
use crate::BoxError;
use crate::blobstore::{
    BlobStore, ByteStream, Content, Error, KeyRange, OBJECT_NAME_BYTES_MAX, ObjectId,
};
use crate::plugin::Plugin;

/// All of an object.
const WHOLE: RangeInclusive<u64> = 0..=u64::MAX;

/// The limit that the cases give the store.
const BYTES_MAX: u64 = 1_500_000;

/// Larger than what a storage keeps in one piece.
const LARGE: usize = 600_001;

/// Runs all cases on `plugin`, its host interface configured with `settings`.
///
/// # Errors
/// [`Failed`] names the cases that did.
pub async fn run(plugin: &dyn Plugin, settings: &BTreeMap<String, String>) -> Result<(), Failed> {
    let mut limited = settings.clone();
    limited.insert("max_object_bytes".to_owned(), BYTES_MAX.to_string());
    let mut cases = Cases::default();
    macro_rules! containers {
        ($($case:ident)*) => {$(
            cases.run(stringify!($case), async {
                let store = plugin.blobstore(&ask("contract", false, &limited)).await?;
                // The case's name is the container's: cases share nothing.
                let container = Container { store, name: stringify!($case) };
                container.store.create_container(container.name).await?;
                $case(&container).await
            }).await;
        )*};
    }
    containers! {
        missing_object_is_none
        objects_of_any_size
        bodies_in_any_pieces
        the_largest_fits_and_no_more
        unusual_names
        illegal_names_are_refused
        ranges
        writes_replace
        a_body_that_breaks_off_changes_nothing
        a_writer_that_goes_away_changes_nothing
        one_of_many_writers_wins
        a_reader_never_sees_a_mix
        a_body_begun_is_of_one_content
        small_objects_are_read_while_replaced
        names_are_sorted_and_paged
        names_may_change_between_pages
        created_at_is_when_it_was_written
        a_container_is_made_once_and_deleted_whole
    }
    cases
        .run(
            "illegal_containers_are_refused",
            illegal_containers(plugin, settings),
        )
        .await;
    cases
        .run(
            "absent_containers_are_errors",
            absent_containers(plugin, settings),
        )
        .await;
    cases
        .run("namespaces_are_apart", namespaces(plugin, settings))
        .await;
    cases.finish()
}

/// The container of one case.
struct Container {
    store: Arc<dyn BlobStore>,
    name: &'static str,
}

type Blob<T> = crate::blobstore::Result<T>;

impl Container {
    fn id<'a>(&'a self, object: &'a str) -> ObjectId<'a> {
        ObjectId {
            container: self.name,
            object,
        }
    }

    async fn write(&self, object: &str, content: impl Into<Bytes>) -> Blob<()> {
        self.store
            .write(self.id(object), body(content, 50_000))
            .await
    }

    async fn read(&self, object: &str, range: RangeInclusive<u64>) -> Result<Vec<u8>, BoxError> {
        read_all(self.store.read(self.id(object), range).await?).await
    }

    async fn delete(&self, object: &str) -> Blob<()> {
        self.store.delete(self.id(object)).await
    }

    /// The size that the storage says.
    async fn size(&self, object: &str) -> Blob<Option<u64>> {
        Ok(self
            .store
            .object(self.id(object))
            .await?
            .map(|info| info.size))
    }

    /// All names with `prefix`, in pages of `limit`.
    async fn names(&self, prefix: &str, limit: usize) -> Result<Vec<String>, BoxError> {
        let mut names: Vec<String> = Vec::new();
        loop {
            let range = KeyRange {
                prefix,
                after: names.last().map(String::as_str),
                limit,
            };
            let page = self.store.objects(self.name, range).await?;
            if page.keys.len() > limit {
                return Err(format!("a page of {limit} has {} names", page.keys.len()).into());
            }
            if page.more && page.keys.is_empty() {
                return Err("an empty page promises more".into());
            }
            names.extend(page.keys);
            if !page.more {
                return Ok(names);
            }
        }
    }
}

/// `content` in pieces of `bytes`, with others having a turn between them.
fn body(content: impl Into<Bytes>, bytes: usize) -> ByteStream {
    Box::pin(stream::unfold(content.into(), move |mut rest| async move {
        tokio::task::yield_now().await;
        let piece = rest.split_to(bytes.min(rest.len()));
        (!piece.is_empty()).then_some((Ok(piece), rest))
    }))
}

/// As [`body`], and then an error.
fn broken(content: impl Into<Bytes>) -> ByteStream {
    let error = stream::once(async { Err(BoxError::from("the body broke off")) });
    Box::pin(body(content, 50_000).chain(error))
}

async fn read_all(mut content: Content) -> Result<Vec<u8>, BoxError> {
    let mut bytes = Vec::new();
    while let Some(piece) = content.body.next().await {
        bytes.extend_from_slice(&piece?);
    }
    match bytes.len() as u64 == content.size {
        true => Ok(bytes),
        false => Err(format!("{} bytes came of {} said", bytes.len(), content.size).into()),
    }
}

/// Bytes that tell where they are.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

/// Large content that is all of one byte.
fn filled(byte: u8) -> Vec<u8> {
    vec![byte; LARGE]
}

/// The byte that all of `content` is.
fn filler(content: &[u8]) -> Result<u8, BoxError> {
    let Some(first) = content.first() else {
        return Err("empty content was found".into());
    };
    match content.iter().all(|byte| byte == first) && content.len() == LARGE {
        true => Ok(*first),
        false => Err(format!("a mix of contents in {} bytes", content.len()).into()),
    }
}

async fn missing_object_is_none(container: &Container) -> Case {
    want!(container.size("missing").await, Ok(None));
    want!(
        container.store.read(container.id("missing"), WHOLE).await,
        Err(Error::NoSuchObject(name)) if name == "missing"
    );
    want!(container.delete("missing").await, Ok(()));
    container.write("object", "content").await?;
    want!(container.delete("object").await, Ok(()));
    want!(container.size("object").await, Ok(None));
    want!(
        container.store.read(container.id("object"), WHOLE).await,
        Err(Error::NoSuchObject(_))
    );
    want!(container.delete("object").await, Ok(()));
    same!(container.names("", 10).await?, Vec::<String>::new());
    container.write("object", "again").await?;
    same!(container.read("object", WHOLE).await?, b"again");
    Ok(())
}

async fn objects_of_any_size(container: &Container) -> Case {
    let edges = [64 << 10, 128 << 10, 1 << 20];
    let near = edges.iter().flat_map(|edge| [edge - 1, *edge, edge + 1]);
    for size in [0, 1, 2].into_iter().chain(near) {
        let content = pattern(size);
        container.write("object", content.clone()).await?;
        same!(container.size("object").await?, Some(size as u64));
        if container.read("object", WHOLE).await? != content {
            return Err(format!("{size} bytes came back changed").into());
        }
    }
    Ok(())
}

async fn bodies_in_any_pieces(container: &Container) -> Case {
    let content = pattern(200_001);
    for bytes in [1, 7, 4096, 131_072, 200_001] {
        let id = container.id("object");
        container
            .store
            .write(id, body(content.clone(), bytes))
            .await?;
        if container.read("object", WHOLE).await? != content {
            return Err(format!("pieces of {bytes} bytes came back changed").into());
        }
    }
    let pieces = ["", "a", "", "", "b", ""].map(|piece| Ok(Bytes::from(piece)));
    let body = Box::pin(stream::iter(pieces));
    container.store.write(container.id("object"), body).await?;
    same!(container.read("object", WHOLE).await?, b"ab");
    Ok(())
}

async fn the_largest_fits_and_no_more(container: &Container) -> Case {
    let largest = BYTES_MAX as usize;
    container.write("object", pattern(largest)).await?;
    for size in [largest + 1, 2 * largest] {
        want!(
            container.write("object", pattern(size)).await,
            Err(Error::TooLarge {
                bytes_max: BYTES_MAX
            })
        );
        want!(
            container.write("other", pattern(size)).await,
            Err(Error::TooLarge { .. })
        );
    }
    same!(container.size("object").await?, Some(BYTES_MAX));
    same!(container.size("other").await?, None);
    Ok(())
}

fn odd_names() -> Vec<String> {
    let mut names: Vec<String> = [
        "a",
        "A",
        "a.b",
        "a/b",
        "/",
        ".",
        "..",
        "a..b",
        " ",
        "*",
        ">",
        "$",
        "=",
        "_",
        "-",
        "новый объект",
        "日本語",
        "🦀",
        "é",
        "e\u{301}",
        "\n",
        "\u{7f}",
        "\"'\\",
        "%2E",
        "../../etc/passwd",
        "_INBOX.x",
        "YQ==",
    ]
    .map(str::to_owned)
    .into();
    names.push("n".repeat(OBJECT_NAME_BYTES_MAX));
    names.push("ж".repeat(OBJECT_NAME_BYTES_MAX / 2));
    names
}

async fn unusual_names(container: &Container) -> Case {
    let names = odd_names();
    for name in &names {
        want!(container.size(name).await, Ok(None));
        container.write(name, name.clone()).await?;
    }
    let sorted: BTreeSet<String> = names.iter().cloned().collect();
    same!(
        container.names("", 7).await?,
        sorted.into_iter().collect::<Vec<_>>()
    );
    for name in &names {
        same!(container.read(name, WHOLE).await?, name.as_bytes());
        container.delete(name).await?;
        want!(container.size(name).await, Ok(None));
    }
    Ok(())
}

async fn illegal_names_are_refused(container: &Container) -> Case {
    let long = "n".repeat(OBJECT_NAME_BYTES_MAX + 1);
    for name in ["", &long, "a\0b"] {
        let id = container.id(name);
        want!(
            container.store.read(id, WHOLE).await,
            Err(Error::InvalidArgument(_))
        );
        want!(
            container.write(name, "content").await,
            Err(Error::InvalidArgument(_))
        );
        want!(container.size(name).await, Err(Error::InvalidArgument(_)));
        want!(container.delete(name).await, Err(Error::InvalidArgument(_)));
    }
    Ok(())
}

async fn ranges(container: &Container) -> Case {
    let content = pattern(LARGE);
    let last = LARGE as u64 - 1;
    container.write("object", content.clone()).await?;
    // Something of others in between, for storages that keep pieces one after the other.
    container.write("other", "other").await?;
    let edges = [
        0, 1, 65_535, 65_536, 131_071, 131_072, 262_143, 400_000, last,
    ];
    for start in edges {
        for end in edges.into_iter().chain([last + 1, u64::MAX]) {
            let expected = match (start as usize, (end.min(last) + 1) as usize) {
                (start, end) if start < end => content.get(start..end).unwrap_or_default(),
                _ => &[],
            };
            let found = container
                .read("object", RangeInclusive::new(start, end))
                .await?;
            if found != expected {
                return Err(format!("{start}..={end} gave {} bytes", found.len()).into());
            }
        }
    }
    for beyond in [last + 1, last + 2, u64::MAX] {
        same!(container.read("object", beyond..=u64::MAX).await?, b"");
        same!(
            container
                .read("object", RangeInclusive::new(beyond, 0))
                .await?,
            b""
        );
    }
    container.write("empty", "").await?;
    same!(container.read("empty", WHOLE).await?, b"");
    same!(container.read("empty", 5..=9).await?, b"");
    Ok(())
}

async fn writes_replace(container: &Container) -> Case {
    for size in [LARGE, 10, 0, 300_000, 131_072] {
        let content = pattern(size);
        container.write("object", content.clone()).await?;
        same!(container.size("object").await?, Some(size as u64));
        if container.read("object", WHOLE).await? != content {
            return Err(format!("{size} bytes came back changed").into());
        }
    }
    same!(container.names("", 10).await?, ["object"]);
    Ok(())
}

async fn a_body_that_breaks_off_changes_nothing(container: &Container) -> Case {
    container.write("there", "before").await?;
    for size in [0, 1, 1_000, LARGE] {
        for name in ["there", "absent"] {
            let id = container.id(name);
            want!(
                container.store.write(id, broken(pattern(size))).await,
                Err(Error::Body(_))
            );
        }
        same!(container.read("there", WHOLE).await?, b"before");
        want!(container.size("absent").await, Ok(None));
    }
    same!(container.names("", 10).await?, ["there"]);
    Ok(())
}

async fn a_writer_that_goes_away_changes_nothing(container: &Container) -> Case {
    container.write("there", "before").await?;
    for size in [0, 1_000, LARGE] {
        for name in ["there", "absent"] {
            let endless = Box::pin(body(pattern(size), 50_000).chain(stream::pending()));
            let write = container.store.write(container.id(name), endless);
            want!(
                tokio::time::timeout(Duration::from_millis(100), write).await,
                Err(_)
            );
        }
        same!(container.read("there", WHOLE).await?, b"before");
        want!(container.size("absent").await, Ok(None));
    }
    container.write("absent", pattern(LARGE)).await?;
    same!(container.read("absent", WHOLE).await?.len(), LARGE);
    Ok(())
}

async fn one_of_many_writers_wins(container: &Container) -> Case {
    for round in 0..3 {
        let writes = (0..8).map(|i| container.write("object", filled(round * 8 + i)));
        for write in join_all(writes).await {
            write?;
        }
        let content = container.read("object", WHOLE).await?;
        let byte = filler(&content)?;
        if byte / 8 != round {
            return Err(format!("content {byte} is of an earlier round than {round}").into());
        }
    }
    same!(container.names("", 10).await?, ["object"]);
    Ok(())
}

async fn a_reader_never_sees_a_mix(container: &Container) -> Case {
    container.write("object", filled(0)).await?;
    let done = std::sync::atomic::AtomicBool::new(false);
    let writing = async {
        for byte in 1..=20 {
            container.write("object", filled(byte)).await?;
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok::<(), BoxError>(())
    };
    let reading = async {
        let mut newest = 0;
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let content = container.store.read(container.id("object"), WHOLE).await?;
            let byte = match read_all(content).await {
                Ok(content) => filler(&content)?,
                Err(error) if is_changed(&error) => continue,
                Err(error) => return Err(error),
            };
            if byte < newest {
                return Err(format!("content {byte} came back after {newest}").into());
            }
            newest = byte;
            tokio::task::yield_now().await;
        }
        Ok::<(), BoxError>(())
    };
    let (wrote, read) = tokio::join!(writing, reading);
    wrote?;
    read?;
    same!(filler(&container.read("object", WHOLE).await?)?, 20);
    Ok(())
}

fn is_changed(error: &BoxError) -> bool {
    matches!(error.downcast_ref(), Some(Error::Changed(_)))
}

async fn a_body_begun_is_of_one_content(container: &Container) -> Case {
    for replace in [true, false] {
        container.write("object", filled(1)).await?;
        let mut content = container.store.read(container.id("object"), WHOLE).await?;
        let mut bytes = content.body.next().await.ok_or("no content")??.to_vec();
        match replace {
            true => container.write("object", filled(2)).await?,
            false => container.delete("object").await?,
        }
        loop {
            match content.body.next().await {
                Some(Ok(piece)) => bytes.extend_from_slice(&piece),
                Some(Err(error)) if is_changed(&error) => break,
                Some(Err(error)) => return Err(error),
                None => {
                    same!(filler(&bytes)?, 1);
                    break;
                }
            }
        }
        if bytes.iter().any(|byte| *byte != 1) {
            return Err("a body went on with other content".into());
        }
    }
    Ok(())
}

async fn small_objects_are_read_while_replaced(container: &Container) -> Case {
    let content = |round: u8| vec![round; 1_000 + usize::from(round)];
    container.write("object", content(0)).await?;
    let done = std::sync::atomic::AtomicBool::new(false);
    let writing = async {
        for round in 1..=100 {
            container.write("object", content(round)).await?;
        }
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        Ok::<(), BoxError>(())
    };
    let reading = async {
        while !done.load(std::sync::atomic::Ordering::Relaxed) {
            let found = container.read("object", WHOLE).await?;
            let round = found.first().copied().unwrap_or_default();
            same!(found, content(round));
            tokio::task::yield_now().await;
        }
        Ok::<(), BoxError>(())
    };
    let (wrote, read) = tokio::join!(writing, reading);
    wrote?;
    read
}

async fn names_are_sorted_and_paged(container: &Container) -> Case {
    let names: BTreeSet<String> = (0..50)
        .map(|i| format!("{}/{i}", if i % 2 == 0 { "even" } else { "odd" }))
        .collect();
    for name in &names {
        container.write(name, name.clone()).await?;
    }
    container.write("zzz", "deleted").await?;
    container.delete("zzz").await?;
    let all: Vec<String> = names.iter().cloned().collect();
    for limit in [1, 7, 50, 1000] {
        same!(container.names("", limit).await?, all);
    }
    let odd: Vec<String> = names
        .iter()
        .filter(|name| name.starts_with("odd"))
        .cloned()
        .collect();
    same!(container.names("odd", 7).await?, odd);
    same!(container.names("none", 7).await?, Vec::<String>::new());
    let range = KeyRange {
        prefix: "",
        after: Some("zz"),
        limit: 5,
    };
    want!(container.store.objects(container.name, range).await, Ok(page) if page.keys.is_empty() && !page.more);
    Ok(())
}

async fn names_may_change_between_pages(container: &Container) -> Case {
    for i in 0..40 {
        container.write(&format!("{i:02}"), "content").await?;
    }
    let (mut seen, mut after) = (Vec::new(), None::<String>);
    for round in 0.. {
        let range = KeyRange {
            prefix: "",
            after: after.as_deref(),
            limit: 10,
        };
        let page = container.store.objects(container.name, range).await?;
        seen.extend(page.keys);
        after = seen.last().cloned();
        if !page.more {
            break;
        }
        // One behind and one far ahead of the listing go, one far behind comes.
        container.delete(&format!("{round:02}")).await?;
        container
            .write(&format!("0{round}-late"), "content")
            .await?;
    }
    // What was there all the time is seen, once, in order.
    if !seen.is_sorted_by(|a, b| a < b) {
        return Err(format!("not in order, or twice: {seen:?}").into());
    }
    for i in 10..40 {
        if !seen.contains(&format!("{i:02}")) {
            return Err(format!("{i:02} is missing").into());
        }
    }
    Ok(())
}

async fn created_at_is_when_it_was_written(container: &Container) -> Case {
    // Clocks of storage and host may differ by a little.
    let leeway = Duration::from_secs(10);
    let id = container.id("object");
    let mut earlier = SystemTime::now() - leeway;
    for content in ["one", "two"] {
        container.write("object", content).await?;
        let info = container.store.object(id).await?.ok_or("no object")?;
        same!(info.name, "object");
        if info.created_at < earlier || info.created_at > SystemTime::now() + leeway {
            return Err(format!("created at {:?}", info.created_at).into());
        }
        earlier = info.created_at;
    }
    let info = container
        .store
        .container(container.name)
        .await?
        .ok_or("no container")?;
    if info.created_at > earlier + leeway || info.created_at + leeway * 60 < earlier {
        return Err(format!("the container was created at {:?}", info.created_at).into());
    }
    Ok(())
}

async fn a_container_is_made_once_and_deleted_whole(container: &Container) -> Case {
    let (store, name) = (&container.store, container.name);
    container.write("object", pattern(LARGE)).await?;
    let before = store.container(name).await?.ok_or("no container")?;
    same!(before.name, name);
    same!(store.create_container(name).await?, before);
    same!(container.size("object").await?, Some(LARGE as u64));
    want!(store.delete_container(name).await, Ok(()));
    want!(store.container(name).await, Ok(None));
    want!(
        container.size("object").await,
        Err(Error::NoSuchContainer(_))
    );
    want!(store.delete_container(name).await, Ok(()));
    store.create_container(name).await?;
    want!(container.size("object").await, Ok(None));
    same!(container.names("", 10).await?, Vec::<String>::new());
    Ok(())
}

async fn illegal_containers(plugin: &dyn Plugin, settings: &BTreeMap<String, String>) -> Case {
    let long = "c".repeat(300);
    let store = plugin.blobstore(&ask("contract", false, settings)).await?;
    let flat = plugin.blobstore(&ask("contract", true, settings)).await?;
    let odd = ["a.b", "a b", "имя", "a*", ">"];
    let names = ["", &long].map(|name| (&store, name));
    for (store, name) in names.into_iter().chain(odd.map(|name| (&flat, name))) {
        let id = ObjectId {
            container: name,
            object: "object",
        };
        want!(
            store.create_container(name).await,
            Err(Error::InvalidArgument(_))
        );
        want!(store.container(name).await, Err(Error::InvalidArgument(_)));
        want!(store.object(id).await, Err(Error::InvalidArgument(_)));
    }
    for name in odd {
        store.create_container(name).await?;
        want!(store.container(name).await, Ok(Some(info)) if info.name == name);
    }
    Ok(())
}

async fn absent_containers(plugin: &dyn Plugin, settings: &BTreeMap<String, String>) -> Case {
    let mut strict = settings.clone();
    strict.insert("create".to_owned(), "false".to_owned());
    let strict = plugin.blobstore(&ask("contract", false, &strict)).await?;
    let id = ObjectId {
        container: "absent",
        object: "object",
    };
    let range = KeyRange {
        prefix: "",
        after: None,
        limit: 1,
    };
    want!(
        strict.create_container("absent").await,
        Err(Error::NoSuchContainer(name)) if name == "absent"
    );
    want!(strict.container("absent").await, Ok(None));
    want!(strict.delete_container("absent").await, Ok(()));
    want!(
        strict.read(id, WHOLE).await,
        Err(Error::NoSuchContainer(name)) if name == "absent"
    );
    want!(
        strict.write(id, body("content", 10)).await,
        Err(Error::NoSuchContainer(_))
    );
    want!(
        strict.write(id, body(pattern(LARGE), 10_000)).await,
        Err(Error::NoSuchContainer(_))
    );
    want!(strict.object(id).await, Err(Error::NoSuchContainer(_)));
    want!(strict.delete(id).await, Err(Error::NoSuchContainer(_)));
    want!(
        strict.objects("absent", range).await,
        Err(Error::NoSuchContainer(_))
    );
    let store = plugin.blobstore(&ask("contract", false, settings)).await?;
    store.create_container("absent").await?;
    want!(strict.create_container("absent").await, Ok(_));
    want!(strict.object(id).await, Ok(None));
    Ok(())
}

async fn namespaces(plugin: &dyn Plugin, settings: &BTreeMap<String, String>) -> Case {
    let mut shared = settings.clone();
    shared.insert("shared".to_owned(), "true".to_owned());
    let id = ObjectId {
        container: "apart",
        object: "object",
    };
    let views = [
        ("a", plugin.blobstore(&ask("a", false, settings)).await?),
        ("b", plugin.blobstore(&ask("b", false, settings)).await?),
        ("shared", plugin.blobstore(&ask("a", false, &shared)).await?),
    ];
    for (view, store) in &views {
        want!(store.container("apart").await, Ok(None));
        store.create_container("apart").await?;
        want!(store.object(id).await, Ok(None));
        store.write(id, body(*view, 10)).await?;
    }
    for (view, store) in &views {
        let found = read_all(store.read(id, WHOLE).await?).await?;
        same!(found, view.as_bytes());
    }
    // What is shared, and what a host with flat names has, is one and the same for all who say so.
    for (namespace, flat, settings) in [("b", false, &shared), ("b", true, settings)] {
        let store = plugin.blobstore(&ask(namespace, flat, settings)).await?;
        let found = read_all(store.read(id, WHOLE).await?).await?;
        same!(found, b"shared");
    }
    let [_, _, (_, shared)] = &views;
    want!(
        shared.create_container("a__apart").await,
        Err(Error::InvalidArgument(_))
    );
    Ok(())
}
