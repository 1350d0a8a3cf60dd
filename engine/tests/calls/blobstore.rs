//! `wasi:blobstore` as a guest sees it, over memory.

use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use capabilities::blobstore::{
    BlobStore, ByteStream, ContainerInfo, Content, KeyRange, ObjectId, ObjectInfo, Page, Result,
};
use capabilities::memory::Memory;
use capabilities::plugin::{Ask, OpenError, Plugin, Plugins};
use engine::interface::Interfaces;
use engine::{Engine, Runnable};
use http::Method;
use tokio::sync::Semaphore;

use crate::host::{DEADLINE, config, engine, entry, get, grant, read, send, shared, start, text};

const INTERFACES: [&str; 3] = ["blobstore", "container", "types"];

async fn blob_on(engine: &Engine, workload: &str, config: &[(&str, &str)]) -> Runnable {
    let mut grant = grant(workload);
    grant.declared = entry("blobstore", &INTERFACES, config);
    start(engine, "blob", grant).await
}

async fn blob(workload: &str, config: &[(&str, &str)]) -> Runnable {
    blob_on(shared(), workload, config).await
}

async fn ask(
    guest: &Runnable,
    method: Method,
    target: &str,
    body: impl Into<Bytes>,
) -> (u16, String) {
    text(send(guest, method, target, body).await.unwrap()).await
}

async fn put(guest: &Runnable, target: &str, body: impl Into<Bytes>) {
    let (status, text) = ask(guest, Method::PUT, target, body).await;
    assert_eq!(status, 204, "{target}: {text}");
}

async fn post(guest: &Runnable, target: &str) {
    let (status, text) = ask(guest, Method::POST, target, "").await;
    assert_eq!(status, 204, "{target}: {text}");
}

async fn status(guest: &Runnable, target: &str) -> u16 {
    text(get(guest, target).await.unwrap()).await.0
}

#[tokio::test]
async fn objects_are_written_read_and_deleted() {
    let guest = blob("blob-crud", &[]).await;
    let missing = (404, "error: container 'c' does not exist\n".to_owned());
    assert_eq!(ask(&guest, Method::GET, "/c/o", "").await, missing);
    assert_eq!(read(&guest, "/c?exists").await, "false\n");
    for _ in 0..2 {
        post(&guest, "/c?create").await;
    }
    assert_eq!(read(&guest, "/c?exists").await, "true\n");
    assert_eq!(read(&guest, "/c?name").await, "c\n");
    let missing = (404, "error: object 'o' does not exist\n".to_owned());
    assert_eq!(ask(&guest, Method::GET, "/c/o", "").await, missing);
    assert_eq!(ask(&guest, Method::GET, "/c/o?info", "").await, missing);
    assert_eq!(read(&guest, "/c/o?has").await, "false\n");
    let large = "0123456789".repeat(100_000);
    for content in ["one", "", &large, "two"] {
        put(&guest, "/c/o", content.to_owned()).await;
        assert_eq!(read(&guest, "/c/o").await, content);
        assert_eq!(read(&guest, "/c/o?sync").await, content);
        let size = format!("{}\n", content.len());
        assert_eq!(read(&guest, "/c/o?size").await, size);
    }
    assert_eq!(read(&guest, "/c/o?has").await, "true\n");
    let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
    for (target, expected) in [("/c/o?info", "o c 3"), ("/c?info", "c")] {
        let info = read(&guest, target).await;
        let (rest, created) = info.trim().rsplit_once(' ').unwrap();
        assert_eq!(rest, expected);
        assert!(now - created.parse::<u64>().unwrap() < 100, "{info}");
    }
    for _ in 0..2 {
        assert_eq!(ask(&guest, Method::DELETE, "/c/o", "").await.0, 204);
        assert_eq!(read(&guest, "/c/o?has").await, "false\n");
    }
    put(&guest, "/c/o", "again").await;
    for _ in 0..2 {
        post(&guest, "/c?delete").await;
        assert_eq!(status(&guest, "/c/o").await, 404);
    }
}

#[tokio::test]
async fn ranges_include_their_end() {
    let guest = blob("blob-ranges", &[]).await;
    post(&guest, "/c?create").await;
    put(&guest, "/c/o", "0123456789").await;
    for (range, expected) in [
        ("start=0&end=0", "0"),
        ("start=2&end=4", "234"),
        ("start=7&end=1000", "789"),
        ("start=9", "9"),
        ("start=10&end=20", ""),
        ("start=1000", ""),
        ("start=5&end=3", ""),
    ] {
        assert_eq!(read(&guest, &format!("/c/o?{range}")).await, expected);
        let size = format!("{}\n", expected.len());
        assert_eq!(read(&guest, &format!("/c/o?size&{range}")).await, size);
    }
}

#[tokio::test]
async fn only_what_is_finished_is_stored() {
    let guest = blob("blob-finish", &[]).await;
    post(&guest, "/c?create").await;
    put(&guest, "/c/there", "before").await;
    let large = "x".repeat(1 << 20);
    for body in ["", "small", &large] {
        for object in ["there", "absent"] {
            let target = format!("/c/{object}?abandon");
            let put = ask(&guest, Method::PUT, &target, body.to_owned()).await;
            assert_eq!(put.0, 202);
            // A guest that traps, and one whose caller goes away.
            let target = format!("/c/{object}?trap");
            let trapped = send(&guest, Method::PUT, &target, body.to_owned()).await;
            assert!(trapped.is_err());
            let target = format!("/c/{object}?hang");
            let hung = send(&guest, Method::PUT, &target, body.to_owned());
            assert!(
                tokio::time::timeout(Duration::from_millis(200), hung)
                    .await
                    .is_err()
            );
        }
        assert_eq!(read(&guest, "/c/there").await, "before");
        assert_eq!(status(&guest, "/c/absent").await, 404);
    }
    let (status, why) = ask(&guest, Method::PUT, "/c/absent?nowhere", "small").await;
    assert_eq!(status, 500);
    assert_eq!(
        why,
        "error: outgoing value not associated with a container\n"
    );
}

#[tokio::test]
async fn a_value_may_get_its_name_late_but_not_too_late() {
    let guest = blob("blob-late", &[]).await;
    post(&guest, "/c?create").await;
    put(&guest, "/c/o?late", "x".repeat(100_000)).await;
    assert_eq!(read(&guest, "/c/o?size").await, "100000\n");
    let (status, why) = ask(&guest, Method::PUT, "/c/large?late", "x".repeat(1 << 20)).await;
    assert!(
        status == 500 && why.contains("write-data was not called"),
        "{why}"
    );
    // What was written until then is not taken for the whole.
    assert_eq!(read(&guest, "/c/large?has").await, "false\n");
}

#[tokio::test]
async fn objects_are_copied_and_moved() {
    let guest = blob("blob-copies", &[]).await;
    post(&guest, "/a?create").await;
    post(&guest, "/b?create").await;
    let content = "0123456789".repeat(50_000);
    put(&guest, "/a/o", content.clone()).await;
    put(&guest, "/b/other", "replaced").await;
    for target in [
        "/a/o?copy=b/copy",
        "/a/o?copy=b/other",
        "/a/o?copy=a/o",
        "/a/o?move=a/o",
    ] {
        post(&guest, target).await;
    }
    for object in ["/a/o", "/b/copy", "/b/other"] {
        assert_eq!(read(&guest, object).await, content, "{object}");
    }
    post(&guest, "/a/o?move=b/moved").await;
    assert_eq!(status(&guest, "/a/o").await, 404);
    assert_eq!(read(&guest, "/b/moved").await, content);
    for missing in [
        "/a/o?copy=b/x",
        "/a/o?move=a/o",
        "/b/moved?copy=none/x",
        "/none/x?copy=b/x",
    ] {
        assert_eq!(
            ask(&guest, Method::POST, missing, "").await.0,
            404,
            "{missing}"
        );
    }
    assert_eq!(read(&guest, "/b?list").await, "copy\nmoved\nother\n");
}

#[tokio::test]
async fn a_listing_has_every_name_once_over_its_pages() {
    let guest = blob("blob-pages", &[]).await;
    post(&guest, "/c?create").await;
    assert_eq!(read(&guest, "/c?list").await, "");
    let names: Vec<String> = (0..1_200).map(|n| format!("o{n:04}")).collect();
    for name in &names {
        put(&guest, &format!("/c/{name}"), "x").await;
    }
    for len in [7, 400, 1_000, u64::MAX] {
        let listed = read(&guest, &format!("/c?list&len={len}")).await;
        let pages: Vec<&str> = listed.split("\n\n").collect();
        let listed: Vec<&str> = pages.iter().flat_map(|page| page.lines()).collect();
        assert_eq!(listed, names);
        let longest = pages.iter().map(|page| page.lines().count()).max();
        assert!(longest <= usize::try_from(len).ok());
    }
    for (skip, skipped, rest) in [
        (0, 0, 1_200),
        (1_100, 1_100, 100),
        (1_200, 1_200, 0),
        (9_999, 1_200, 0),
    ] {
        let listed = read(&guest, &format!("/c?list&skip={skip}&len=2000")).await;
        let names: Vec<&str> = listed
            .lines()
            .filter(|line| line.starts_with('o'))
            .collect();
        assert!(
            listed.starts_with(&format!("skipped {skipped}\n")),
            "{skip}"
        );
        assert_eq!(names.len(), rest, "{skip}");
    }
    let many = ask(
        &guest,
        Method::POST,
        "/c?delete-many",
        "o0001\nnone\no1199\n",
    )
    .await;
    assert_eq!(many.0, 204);
    let listed = read(&guest, "/c?list&len=2000").await;
    assert_eq!(
        listed.lines().filter(|line| line.starts_with('o')).count(),
        1_198
    );
    post(&guest, "/c?clear").await;
    assert_eq!(read(&guest, "/c?list").await, "");
    assert_eq!(read(&guest, "/c?exists").await, "true\n");
}

#[tokio::test]
async fn names_belong_to_a_namespace_unless_they_are_shared() {
    let (a, b) = (blob("blob-a", &[]).await, blob("blob-b", &[]).await);
    post(&a, "/spaces?create").await;
    put(&a, "/spaces/o", "a").await;
    assert_eq!(read(&b, "/spaces?exists").await, "false\n");
    let shared = [("shared", "true")];
    let (a, b) = (blob("blob-a", &shared).await, blob("blob-b", &shared).await);
    assert_eq!(read(&b, "/spaces?exists").await, "false\n");
    post(&a, "/spaces?create").await;
    put(&a, "/spaces/o", "both").await;
    assert_eq!(read(&b, "/spaces/o").await, "both");
}

#[tokio::test]
async fn an_entry_may_list_its_containers_and_be_read_only() {
    let all = blob("blob-access", &[]).await;
    for container in ["a", "b", "c"] {
        post(&all, &format!("/{container}?create")).await;
        put(&all, &format!("/{container}/o"), "content").await;
    }
    let listed = blob("blob-access", &[("buckets", " a, b ")]).await;
    put(&listed, "/a/o", "new").await;
    post(&listed, "/a/o?copy=b/o").await;
    assert_eq!(read(&listed, "/b/o").await, "new");
    let refused = async |guest: &Runnable, method, target: &str| {
        let (status, why) = ask(guest, method, target, "").await;
        assert!(
            status == 500 && why.starts_with("error: unauthorized"),
            "{target}: {why}"
        );
    };
    for (method, target) in [
        (Method::GET, "/c/o"),
        (Method::GET, "/c?exists"),
        (Method::POST, "/c?create"),
        (Method::POST, "/c?delete"),
        (Method::POST, "/c/o?copy=a/o"),
        (Method::POST, "/a/o?copy=c/o"),
        (Method::POST, "/a/o?move=c/o"),
    ] {
        refused(&listed, method, target).await;
    }
    let read_only = [("buckets", "a,b"), ("read_only", "true")];
    let read_only = blob("blob-access", &read_only).await;
    assert_eq!(read(&read_only, "/a/o").await, "new");
    assert_eq!(read(&read_only, "/a?list").await, "o\n");
    for (method, target) in [
        (Method::PUT, "/a/o"),
        (Method::DELETE, "/a/o"),
        (Method::POST, "/a?create"),
        (Method::POST, "/a?delete"),
        (Method::POST, "/a?clear"),
        (Method::POST, "/a/o?copy=b/x"),
        (Method::POST, "/a/o?move=b/x"),
    ] {
        refused(&read_only, method, target).await;
    }
    assert_eq!(read(&all, "/a/o").await, "new");
    assert_eq!(read(&all, "/c/o").await, "content");
}

#[tokio::test]
async fn settings_that_mean_nothing_are_refused() {
    for config in [
        ("read_only", "yes"),
        ("max_object_bytes", "many"),
        ("history", "5"),
    ] {
        let mut grant = grant("blob-settings");
        grant.declared = entry("blobstore", &INTERFACES, &[config]);
        let compiled = shared()
            .compile("blob", crate::host::wasm("blob"))
            .await
            .unwrap();
        let refused = shared().link(&compiled, grant).await.map(drop);
        let text = capabilities::report(&refused.unwrap_err());
        assert!(text.contains(config.0), "{text}");
    }
}

#[tokio::test]
async fn what_the_storage_refuses_the_guest_is_told() {
    let engine = engine(config());
    let guest = blob_on(&engine, "blob-full", &[]).await;
    post(&guest, "/c?create").await;
    put(&guest, "/c/o?fill=16", "").await;
    assert_eq!(read(&guest, "/c/o?size").await, "16777216\n");
    let (status, why) = ask(&guest, Method::PUT, "/c/large?fill=100", "").await;
    assert!(status == 500 && why.contains("would be in memory"), "{why}");
    let limited = blob_on(&engine, "blob-full", &[("max_object_bytes", "1000000")]).await;
    let (status, why) = ask(&limited, Method::PUT, "/c/large?fill=1", "").await;
    assert_eq!(
        (status, why.as_str()),
        (500, "error: object exceeds 1000000 bytes\n")
    );
    assert_eq!(read(&guest, "/c?list").await, "o\n");
}

#[tokio::test]
async fn open_values_are_bounded() {
    let guest = blob("blob-hoard", &[]).await;
    post(&guest, "/c?create").await;
    put(&guest, "/c/o", "content").await;
    let given = ask(&guest, Method::POST, "/c/o?hoard=300", "").await;
    assert_eq!(given, (200, "256\n".to_owned()));
    // And they are given back with their guest.
    assert_eq!(read(&guest, "/c/o").await, "content");
}

/// Memory that takes a body only once its gate is open.
struct Gated {
    memory: Memory,
    gate: Arc<Semaphore>,
}

struct GatedStore {
    store: Arc<dyn BlobStore>,
    gate: Arc<Semaphore>,
}

#[async_trait]
impl Plugin for Gated {
    fn name(&self) -> &'static str {
        "gated"
    }

    async fn blobstore(&self, ask: &Ask<'_>) -> Result<Arc<dyn BlobStore>, OpenError> {
        Ok(Arc::new(GatedStore {
            store: self.memory.blobstore(ask).await?,
            gate: Arc::clone(&self.gate),
        }))
    }
}

#[async_trait]
impl BlobStore for GatedStore {
    async fn create_container(&self, name: &str) -> Result<ContainerInfo> {
        self.store.create_container(name).await
    }

    async fn container(&self, name: &str) -> Result<Option<ContainerInfo>> {
        self.store.container(name).await
    }

    async fn delete_container(&self, name: &str) -> Result<()> {
        self.store.delete_container(name).await
    }

    async fn read(&self, object: ObjectId<'_>, range: RangeInclusive<u64>) -> Result<Content> {
        self.store.read(object, range).await
    }

    async fn write(&self, object: ObjectId<'_>, body: ByteStream) -> Result<()> {
        let _open = self.gate.acquire().await.unwrap();
        self.store.write(object, body).await
    }

    async fn object(&self, object: ObjectId<'_>) -> Result<Option<ObjectInfo>> {
        self.store.object(object).await
    }

    async fn delete(&self, object: ObjectId<'_>) -> Result<()> {
        self.store.delete(object).await
    }

    async fn objects(&self, container: &str, range: KeyRange<'_>) -> Result<Page> {
        self.store.objects(container, range).await
    }
}

#[tokio::test]
async fn a_guest_that_is_faster_than_the_storage_waits() {
    let gate = Arc::new(Semaphore::new(0));
    let gated = Gated {
        memory: Memory::new(64 << 20),
        gate: Arc::clone(&gate),
    };
    let plugins = Plugins::new("gated").with(gated);
    let engine = Engine::new(config(), plugins, Interfaces::default()).unwrap();
    let guest = blob_on(&engine, "blob-gated", &[]).await;
    post(&guest, "/c?create").await;
    let mut write = Box::pin(ask(&guest, Method::PUT, "/c/o?fill=8", ""));
    let early = tokio::time::timeout(Duration::from_millis(500), &mut write).await;
    assert!(early.is_err(), "8 MiB went nowhere: {early:?}");
    gate.add_permits(1);
    let written = tokio::time::timeout(DEADLINE, write).await.unwrap();
    assert_eq!(written.0, 204, "{}", written.1);
    assert_eq!(read(&guest, "/c/o?size").await, "8388608\n");
}
