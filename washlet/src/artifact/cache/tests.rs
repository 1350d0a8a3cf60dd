use super::cleaner::{AGE_MIN, TEMP_AGE_MAX};
use super::*;
use std::process::{Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(24 * 60 * 60);

fn open(dir: &TempDir, budget: u64) -> Arc<Store> {
    Store::open(dir.path(), budget, 1 << 20).unwrap()
}

/// Puts `size` bytes into the cache as if used `age` ago by another process.
fn put(store: &Arc<Store>, fill: u8, size: usize, age: Duration) -> Digest {
    let bytes = vec![fill; size];
    let digest = Digest::of(&bytes);
    let mut file = store.temp().unwrap();
    file.write_all(&bytes).unwrap();
    store.keep(file, digest).unwrap();
    set_age(&store.blob_path(digest), age);
    digest
}

fn set_age(path: &Path, age: Duration) {
    File::open(path)
        .unwrap()
        .set_modified(SystemTime::now() - age)
        .unwrap();
}

fn names(dir: &TempDir, of: &str) -> Vec<String> {
    let files = fs::read_dir(dir.path().join(of)).unwrap();
    files
        .map(|file| file.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn credentials(password: &str) -> Credentials {
    Credentials {
        username: "u".to_owned(),
        password: password.to_owned(),
    }
}

fn known(layer: Digest) -> Known {
    Known {
        layer,
        manifest: Digest::of(b"manifest"),
        size: 1,
    }
}

#[test]
fn the_least_recently_used_go_until_the_low_watermark() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, 1000);
    let oldest = put(&store, 1, 100, LONG * 3);
    let pinned = put(&store, 2, 100, LONG * 2);
    let middle = put(&store, 3, 100, LONG);
    let young = put(&store, 4, 600, Duration::from_secs(60));
    let _pin = store.pin(pinned);
    assert_eq!(
        store.usage(),
        Usage {
            bytes: 900,
            entries: 4
        }
    );

    let swept = store.sweep(|| false);
    assert_eq!(
        (swept.removed, swept.removed_bytes, swept.failed),
        (1, 100, 0)
    );
    assert_eq!(
        store.usage(),
        Usage {
            bytes: 800,
            entries: 3
        }
    );
    assert!(store.read(oldest).is_none());
    assert!(
        [pinned, middle, young]
            .iter()
            .all(|digest| store.read(*digest).is_some())
    );
}

#[test]
fn below_the_high_watermark_nothing_goes() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, 1000);
    let digest = put(&store, 1, 850, LONG);
    assert_eq!(store.sweep(|| false).removed, 0);
    assert!(store.read(digest).is_some());
}

#[test]
fn what_is_used_or_young_stays_even_over_budget() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, 10);
    let pinned = put(&store, 1, 100, LONG);
    let pin = store.pin(pinned);
    let again = pin.clone();
    drop(pin);
    put(&store, 2, 100, AGE_MIN / 2);
    assert_eq!(store.sweep(|| false).removed, 0);
    // The clock jumping ahead does not make what was just used old.
    drop(again);
    set_age(&store.blob_path(pinned), LONG);
    assert_eq!(store.sweep(|| false).removed, 0);
    // Nor does it for another process while this one uses it.
    let _pin = store.pin(pinned);
    store.sweep(|| false);
    assert_eq!(open(&dir, 10).sweep(|| false).removed, 0);
}

#[test]
fn a_time_in_the_future_ages_from_now_on() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, 10);
    let digest = put(&store, 1, 100, LONG);
    let path = store.blob_path(digest);
    File::open(&path)
        .unwrap()
        .set_modified(SystemTime::now() + LONG * 365)
        .unwrap();
    assert_eq!(store.sweep(|| false).removed, 0);
    assert!(fs::metadata(&path).unwrap().modified().unwrap() <= SystemTime::now());
    set_age(&path, LONG);
    assert_eq!(open(&dir, 10).sweep(|| false).removed, 1);
}

#[test]
fn foreign_files_do_not_stop_the_cleaner() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, 10);
    let digest = put(&store, 1, 100, LONG);
    let blobs = dir.path().join("blobs/sha256");
    fs::create_dir(blobs.join("directory")).unwrap();
    fs::create_dir(blobs.join(Digest::of(b"directory").hex())).unwrap();
    fs::write(blobs.join("README"), "hello").unwrap();
    fs::write(dir.path().join("refs/torn.json"), "{").unwrap();
    std::os::unix::fs::symlink("/nowhere", blobs.join(Digest::of(b"link").hex())).unwrap();
    assert_eq!(store.sweep(|| false).removed, 1);
    assert!(store.read(digest).is_none());
    assert_eq!(names(&dir, "blobs/sha256").len(), 4);
}

#[test]
fn old_temporary_files_go() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, 1000);
    let (old, new) = (dir.path().join("tmp/old"), dir.path().join("tmp/new"));
    fs::write(&old, "").unwrap();
    fs::write(&new, "").unwrap();
    set_age(&old, TEMP_AGE_MAX * 2);
    store.sweep(|| false);
    assert!(!old.exists() && new.exists());
}

#[test]
fn damage_is_put_aside_and_goes_first() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, 1000);
    let damaged = put(&store, 1, 400, LONG);
    let good = put(&store, 2, 500, LONG);
    fs::write(store.blob_path(damaged), vec![0; 400]).unwrap();
    assert!(store.read(damaged).is_none());
    assert_eq!(names(&dir, "quarantine").len(), 1);
    // Now the place is free again.
    assert!(!store.blob_path(damaged).exists());
    store.sweep(|| false);
    assert!(names(&dir, "quarantine").is_empty());
    assert!(store.read(good).is_some());
}

#[test]
fn garbage_in_the_way_is_moved_aside() {
    let dir = TempDir::new().unwrap();
    for name in ["blobs", "refs", "tmp", "key"] {
        fs::write(dir.path().join(name), "garbage").unwrap();
    }
    for name in ["users", "asking"] {
        fs::create_dir(dir.path().join(name)).unwrap();
    }
    let store = open(&dir, 1000);
    let digest = Digest::of(&[7; 10]);
    fs::create_dir(store.blob_path(digest)).unwrap();
    assert!(store.read(digest).is_none());
    assert_eq!(put(&store, 7, 10, LONG), digest);
    assert!(store.read(digest).is_some());
}

#[test]
fn references_are_known_to_those_who_resolved_them() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, 1000);
    let image: Image = "registry.example/private:1".parse().unwrap();
    let layer = put(&store, 1, 1, LONG);
    let (mine, other) = (
        store.who(Some(&credentials("a"))),
        store.who(Some(&credentials("b"))),
    );
    store.record(&image, &mine, &known(layer)).unwrap();
    assert_eq!(store.find(&image, &other), None);
    assert_eq!(store.find(&image, &Who::anyone()), None);
    assert!(!store.may_share(layer, &other) && store.may_share(layer, &mine));
    // Also after a restart, and no secret is on disk.
    let store = open(&dir, 1000);
    assert_eq!(
        store.find(&image, &store.who(Some(&credentials("a")))),
        Some(known(layer))
    );
    let file = dir.path().join("refs").join(&names(&dir, "refs")[0]);
    assert!(!fs::read_to_string(file).unwrap().contains("\"a\""));
    // What anyone may have is for those with credentials too.
    let public: Image = "registry.example/public:1".parse().unwrap();
    store
        .record(&public, &Who::anyone(), &known(layer))
        .unwrap();
    assert_eq!(store.find(&public, &other), Some(known(layer)));
}

#[test]
fn references_without_an_artifact_are_forgotten() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, 1000);
    let image: Image = "registry.example/gone:1".parse().unwrap();
    store
        .record(&image, &Who::anyone(), &known(Digest::of(b"gone")))
        .unwrap();
    store.sweep(|| false);
    assert_eq!(names(&dir, "refs").len(), 1, "young");
    set_age(&dir.path().join("refs").join(&names(&dir, "refs")[0]), LONG);
    store.sweep(|| false);
    assert!(names(&dir, "refs").is_empty());
}

#[test]
fn room_is_made_of_what_was_not_used_for_longest() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, 1000);
    let pinned = put(&store, 1, 300, LONG);
    let oldest = put(&store, 2, 300, Duration::from_secs(9));
    let young = put(&store, 3, 300, Duration::ZERO);
    let _pin = store.pin(pinned);
    // Used a moment ago, but nobody else can.
    drop(store.pin(oldest));

    let reserved = store.reserve(200).unwrap();
    assert!(store.present(oldest).is_none());
    assert!(store.present(pinned).is_some() && store.present(young).is_some());
    assert_eq!(store.usage().bytes, 600);
    // What is promised is taken, until it is given up.
    assert!(store.reserve(600).is_none());
    assert!(
        store.present(young).is_some(),
        "nothing goes if it is not enough"
    );
    drop(reserved);
    let reserved = store.reserve(600).unwrap();
    assert!(store.present(young).is_none());

    let mut file = store.temp().unwrap();
    file.write_all(&[4; 600]).unwrap();
    let kept = Digest::of(&[4; 600]);
    let _pin = store.pin(kept);
    reserved.keep(file, kept).unwrap();
    assert_eq!(store.usage().bytes, 900);
    assert!(store.reserve(101).is_none());
    assert!(store.reserve(100).is_some());
    assert!(store.reserve(1001).is_none());
}

#[test]
fn what_another_process_may_use_is_no_room() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, 1000);
    let old = put(&store, 1, 400, LONG);
    let young = put(&store, 2, 500, Duration::from_secs(9));
    let other = open(&dir, 1000);
    for _ in 0..2 {
        assert!(store.reserve(600).is_none());
    }
    drop(other.reserve(500).unwrap());
    assert!(store.present(old).is_none() && store.present(young).is_some());
}

#[test]
fn what_is_used_since_it_was_listed_stays() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, 1000);
    let digest = put(&store, 1, 100, LONG);
    let mut swept = Swept::default();
    let entries = store.entries(&mut swept.failed);
    open(&dir, 1000).present(digest).unwrap();
    store.evict(&entries[0], AGE_MIN, &mut swept);
    assert!(store.present(digest).is_some());
    set_age(&store.blob_path(digest), LONG);
    store.evict(&entries[0], AGE_MIN, &mut swept);
    assert!(store.present(digest).is_none());
    assert_eq!((swept.removed, swept.removed_bytes), (1, 100));
}

/// Set for the process that writes until it is killed.
const VICTIM: &str = "ARTIFACT_CACHE_VICTIM";

#[test]
fn killed_writers_leave_nothing_half_written() {
    if let Some(dir) = std::env::var_os(VICTIM) {
        let store = Store::open(Path::new(&dir), 1 << 30, 1 << 20).unwrap();
        let image: Image = "registry.example/app:1".parse().unwrap();
        loop {
            let bytes = uuid::Uuid::new_v4().to_string().repeat(4096);
            let digest = Digest::of(bytes.as_bytes());
            let mut file = store.temp().unwrap();
            file.write_all(bytes.as_bytes()).unwrap();
            store.keep(file, digest).unwrap();
            store
                .record(&image, &Who::anyone(), &known(digest))
                .unwrap();
        }
    }
    let dir = TempDir::new().unwrap();
    let mut written = 0;
    for round in 0..20 {
        let mut victim = Command::new(std::env::current_exe().unwrap())
            .args([
                "--exact",
                "artifact::cache::tests::killed_writers_leave_nothing_half_written",
            ])
            .env(VICTIM, dir.path())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let start = Instant::now();
        let blobs = dir.path().join("blobs/sha256");
        while fs::read_dir(&blobs).map_or(0, Iterator::count) <= written {
            assert!(
                start.elapsed() < Duration::from_secs(30),
                "nothing is written"
            );
            std::thread::yield_now();
        }
        // Somewhere within the next write.
        let until = Instant::now() + Duration::from_micros(331 * round);
        while Instant::now() < until {
            std::hint::spin_loop();
        }
        victim.kill().unwrap();
        victim.wait().unwrap();
        let store = open(&dir, 1 << 30);
        let names = names(&dir, "blobs/sha256");
        written = names.len();
        for name in names {
            let digest = format!("sha256:{name}").parse().unwrap();
            assert!(store.read(digest).is_some(), "{digest} is damaged");
        }
        let image: Image = "registry.example/app:1".parse().unwrap();
        if let Some(known) = store.find(&image, &Who::anyone()) {
            assert!(store.read(known.layer).is_some());
        }
    }
    assert!(written >= 20);
}

#[test]
fn a_tight_disk_gets_back_what_nobody_uses_and_no_more_than_it_needs() {
    let dir = TempDir::new().unwrap();
    let store = open(&dir, 1000);
    let oldest = put(&store, 1, 100, LONG * 3);
    let pinned = put(&store, 2, 100, LONG * 2);
    let middle = put(&store, 3, 100, LONG);
    let young = put(&store, 4, 100, Duration::from_secs(60));
    let _pin = store.pin_present(pinned).unwrap();
    let left = std::cell::Cell::new(1);
    // Far below the budget; the disk is tight for one more file.
    let swept = store.sweep(|| left.replace(0) > 0);
    assert_eq!((swept.removed, swept.removed_bytes), (1, 100));
    let there = |digest| store.blob_path(digest).exists();
    assert!(!there(oldest) && there(middle));
    let swept = store.sweep(|| true);
    assert_eq!(swept.removed, 1, "{swept:?}");
    // What was used within the last minutes, and what runs, stays.
    assert!(!there(middle) && there(pinned) && there(young));
}
