//! Backends in S3 stores: two servers of others, on loopback.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use bytes::Bytes;
use cairnfs::backends::{
    Backend, BackendSpec, ErrorKind, PlaceSettings, Presence, conformance, open, wrap,
};
use cairnfs::types::{Block, Cid, cid};

use crate::support::{
    Proxy, SECRET, Software, Store, World, all_read, patient, skip, wait_until, write_files,
};

fn opened(url: &str, create: bool) -> Arc<dyn Backend> {
    open(&BackendSpec::parse(url, &[]).unwrap(), create).unwrap()
}

fn block(seed: u32, len: usize) -> Block {
    Block::raw(seed.to_le_bytes().into_iter().cycle().take(len).collect::<Vec<u8>>().into())
}

/// Runs a future, as a daemon's threads do.
fn wait<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap()
        .block_on(future)
}

/// Each store that is installed.
fn with_each(test: &str, run: impl Fn(&World, Store)) {
    for software in Software::ALL {
        let world = World::new();
        if let Some(store) = Store::start(&world, software, test) {
            eprintln!("{software:?}");
            run(&world, store);
        }
    }
}

#[test]
fn places_in_s3_stores_do_what_every_backend_does() {
    with_each("s3::conformance", |_, store| {
        let count = AtomicU32::new(0);
        for more in ["", "&packs=0", "&checksum=md5", "&conditional=0&checksum=none"] {
            let make = || {
                let url = store.url(&format!("c/{}", count.fetch_add(1, Ordering::Relaxed)), more);
                // As volumes use them: what breaks for a moment is tried again.
                async move {
                    let settings = PlaceSettings::default();
                    wrap::standard(opened(&url, true), Duration::from_secs(30), &settings)
                }
            };
            if let Err(violation) =
                wait(conformance::run_with_names_up_to(store.software().longest_name(), make))
            {
                panic!("{more}: {violation}");
            }
        }
    });
}

#[test]
fn a_store_behind_a_bad_network_does_what_every_backend_does() {
    with_each("s3::network", |_, store| {
        let proxy = Proxy::start(store.port());
        let count = AtomicU32::new(0);
        let make = || {
            let prefix = format!("n/{}", count.fetch_add(1, Ordering::Relaxed));
            // Made by the good way: nobody is asked again while a backend is added.
            opened(&store.url(&prefix, ""), true);
            let spec = BackendSpec::parse(&store.url_by(proxy.port(), &prefix, ""), &[]).unwrap();
            async move { patient(&spec) }
        };
        if let Err(violation) =
            wait(conformance::run_with_names_up_to(store.software().longest_name(), make))
        {
            panic!("{violation}");
        }
        assert!(proxy.harmed() > 20, "{} were harmed", proxy.harmed());
    });
}

#[test]
fn more_than_a_page_is_listed_counted_and_deleted() {
    with_each("s3::pages", |_, store| {
        wait(async {
            let place = opened(&store.url("many", "&packs=0&capacity=100kB"), true);
            let blocks: Vec<Block> = (0..1100).map(|n| block(n, 40)).collect();
            place.put_many(&blocks).await.unwrap();
            let (mut seen, mut from) = (0, None::<String>);
            loop {
                let page = place.list(from.as_deref(), 1050).await.unwrap();
                seen += page.blocks.len();
                from = page.next;
                if from.is_none() {
                    break;
                }
            }
            assert_eq!(seen, blocks.len());
            assert_eq!(place.usage().await.unwrap().used_bytes, Some(44_000));
            let error = place.put(&block(9999, 60_000)).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Full, "{error}");
            place.put_many(&blocks).await.unwrap();
            let cids: Vec<Cid> = blocks.iter().map(|block| block.cid).collect();
            place.delete_many(&cids).await.unwrap();
            assert_eq!(place.list(None, 10).await.unwrap().blocks, []);
            assert_eq!(place.usage().await.unwrap().used_bytes, Some(0));
            place.put(&block(9999, 60_000)).await.unwrap();
            // Who opens it later counts what is there.
            let again = opened(&store.url("many", "&packs=0&capacity=100kB"), false);
            let error = again.put(&block(9998, 60_000)).await.unwrap_err();
            assert_eq!(error.kind, ErrorKind::Full, "{error}");
        });
    });
}

#[test]
fn full_packs_are_repacked_and_what_lives_in_them_is_read() {
    with_each("s3::repacked", |_, store| {
        wait(async {
            let place = opened(&store.url("packs", ""), true);
            let blocks: Vec<Block> = (0..240).map(|n| block(n, 100_000 + n as usize)).collect();
            place.put_many(&blocks).await.unwrap();
            let packs = || {
                let all = store.files("packs/packs");
                let lens = all.iter().filter(|file| file.extension().is_some_and(|e| e == "car"));
                lens.map(|file| fs::metadata(file).unwrap().len()).collect::<Vec<_>>()
            };
            let before = packs();
            assert_eq!(before.len(), 3, "{before:?}");
            assert!(before.iter().any(|len| *len > 8_000_000), "{before:?}");
            let dead: Vec<Cid> = (0..240).filter(|n| n % 3 > 0).map(|n| blocks[n].cid).collect();
            place.delete_many(&dead).await.unwrap();
            while place.compact().await.unwrap() {}
            assert!(packs().len() > before.len(), "readers have an hour: {:?}", packs());
            // Whoever opens it now finds the living in the new ones.
            let again = opened(&store.url("packs", ""), false);
            for (n, block) in blocks.iter().enumerate() {
                let found = again.get(&block.cid, None).await;
                match found {
                    Ok(data) => assert!(n % 3 == 0 && data == block.data, "{n}"),
                    Err(error) => {
                        assert!(n % 3 > 0 && error.kind == ErrorKind::NotFound, "{n}: {error}");
                    }
                }
            }
        });
    });
}

#[test]
fn a_wrong_copy_is_written_over_and_two_writers_of_a_name_do_not_pass_each_other_by() {
    with_each("s3::copies", |_, store| {
        wait(async {
            let url = store.url("p", "&packs=0");
            let (one, two) = (opened(&url, true), opened(&url, true));
            let (whole, other) = (block(1, 1000), block(2, 10));
            one.put(&whole).await.unwrap();
            let text = whole.cid.to_string();
            let file = store.files("p").into_iter().find(|file| file.ends_with(&text)).unwrap();
            fs::write(&file, "short").unwrap();
            assert_eq!(two.presence(&[whole.cid]).await.unwrap(), [Presence::Present(5)]);
            two.put(&whole).await.unwrap();
            assert_eq!(one.get(&whole.cid, None).await.unwrap(), whole.data);
            for n in 0..4u32 {
                let (a, b) = (block(10 + n, 1).cid, block(20 + n, 1).cid);
                let (first, second) =
                    tokio::join!(one.put_name("n/x", &a), two.put_name("n/x", &b));
                assert!(first.is_ok() || second.is_ok(), "{first:?} {second:?}");
                let names = one.names("n/").await.unwrap();
                assert_eq!(names, two.names("n/").await.unwrap());
                assert!(names[0].1 == a || names[0].1 == b);
                if let (Err(error), _) | (_, Err(error)) = (first, second) {
                    assert!(error.is_temporary(), "{error}");
                }
            }
            one.put_name("n/x", &other.cid).await.unwrap();
            assert_eq!(two.names("n/x").await.unwrap(), [("n/x".to_owned(), other.cid)]);
        });
    });
}

#[test]
fn a_place_that_was_emptied_or_made_anew_says_nothing_of_what_is_absent() {
    with_each("s3::place", |_, store| {
        wait(async {
            let url = store.url("p", "");
            let error = open(&BackendSpec::parse(&url, &[]).unwrap(), false).err().unwrap();
            assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
            assert!(error.message.contains("cairn backend add"), "{error}");
            let place = opened(&url, true);
            let cid = block(1, 10).cid;
            assert_eq!(place.presence(&[cid]).await.unwrap(), [Presence::Absent]);
            for file in store.files("p") {
                fs::remove_file(file).unwrap();
            }
            let lost = |error: cairnfs::backends::BackendError| {
                assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
                assert!(error.message.contains("was it"), "{error}");
            };
            for anew in [false, true] {
                if anew {
                    opened(&url, true);
                }
                lost(place.presence(&[cid]).await.unwrap_err());
                lost(place.get(&cid, None).await.unwrap_err());
                lost(place.list(None, 10).await.unwrap_err());
                lost(place.names("").await.unwrap_err());
                lost(place.probe().await.unwrap_err());
            }
            // Nobody's objects are taken for a place, nor is a place made among them.
            let other = opened(&store.url("q/inner", ""), true);
            other.put(&block(1, 10)).await.unwrap();
            let error = open(&BackendSpec::parse(&store.url("q", ""), &[]).unwrap(), true);
            let error = error.err().unwrap();
            assert_eq!(error.kind, ErrorKind::Invalid, "{error}");
            assert!(error.message.contains("prefix of its own"), "{error}");
            let missing = url.replace("s3://bucket/", "s3://no-such-bucket/");
            let error = open(&BackendSpec::parse(&missing, &[]).unwrap(), true).err().unwrap();
            assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
        });
    });
}

#[test]
fn a_backend_in_a_store_is_tested_by_a_verb_that_says_what_fails_and_shows_no_secret() {
    with_each("s3::verb", |world, mut store| {
        let url = store.url("t", "");
        opened(&url, true);
        let told = world.cairn(&["backend", "test", &url]).ok().stdout;
        for step in ["probe", "put", "range", "presence", "list", "names", "delete", "usage"] {
            assert!(told.contains(step), "{told}");
        }
        let wrong = world.path("wrong");
        fs::copy(store.keys(), &wrong).unwrap();
        let text = fs::read_to_string(&wrong).unwrap().replace(SECRET, "another-secret");
        fs::write(&wrong, text).unwrap();
        let by = |keys: &Path| {
            format!("s3://bucket/t?endpoint={}&auth=file:{}", store.endpoint(), keys.display())
        };
        let refused = world.cairn(&["backend", "test", &by(&wrong)]);
        refused.clone().fails(1, &["secret key is wrong"]);
        assert!(!format!("{refused:?}").contains("another-secret"), "{refused:?}");
        // Nor is a key that the store does not know a place that is not there.
        let unknown = fs::read_to_string(store.keys()).unwrap().replace("-test-key", "-no-key");
        fs::write(&wrong, unknown).unwrap();
        world.cairn(&["backend", "test", &by(&wrong)]).fails(1, &["access key"]);
        let none = world.path("none");
        world.cairn(&["backend", "test", &by(&none)]).fails(1, &["none: "]);
        // From the environment and from a profile.
        let bare = format!("s3://bucket/t?endpoint={}", store.endpoint());
        let run = |url: &str, set: &dyn Fn(&mut Command)| {
            let mut command = world.command(env!("CARGO_BIN_EXE_cairn"));
            command.args(["backend", "test", url]);
            for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"] {
                command.env_remove(name);
            }
            set(&mut command);
            crate::support::run(command, Duration::from_mins(2))
        };
        run(&bare, &|command| {
            command.env("AWS_ACCESS_KEY_ID", "cairn-test-key");
            command.env("AWS_SECRET_ACCESS_KEY", SECRET);
        })
        .ok();
        let shared = world.path("credentials");
        let keys = fs::read_to_string(store.keys()).unwrap().to_lowercase();
        fs::copy(store.keys(), &shared).unwrap();
        fs::write(
            &shared,
            format!("[default]\naws_access_key_id = x\naws_secret_access_key = y\n[work]\n{keys}"),
        )
        .unwrap();
        run(&format!("{bare}&profile=work"), &|command| {
            command.env("AWS_SHARED_CREDENTIALS_FILE", &shared);
            // What the URL says goes before it.
            command.env("AWS_PROFILE", "default");
        })
        .ok();
        let secret = format!("s3://{SECRET}@bucket/t");
        let refused = world.cairn(&["backend", "test", &secret]);
        refused.clone().fails(2, &["auth=file:/path"]);
        assert!(!format!("{} {}", refused.stdout, refused.stderr).contains(SECRET));
        store.kill();
        world.cairn(&["backend", "test", &url]).fails(1, &["is the store running"]);
    });
}

const FILES: usize = 8;

fn has_secret(dir: &Path) -> Option<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).find_map(|path| {
        if path.is_dir() {
            return has_secret(&path);
        }
        let bytes = fs::read(&path).unwrap_or_default();
        bytes.windows(SECRET.len()).any(|part| part == SECRET.as_bytes()).then_some(path)
    })
}

#[test]
fn a_volume_goes_on_while_its_store_is_away_heals_and_is_got_back_from_the_store_alone() {
    for software in Software::ALL {
        let Some(world) = World::mountable("s3::volume") else { return };
        let Some(mut store) = Store::start(&world, software, "s3::volume") else { continue };
        let url = store.url("volumes", "&id=s3");
        let volume = world.volume(&[], "min=2,target=2,max=3");
        volume.cairn(&["backend", "add", &url]).ok();
        // The library shows its keys to who looks closely.
        let mount = volume.mount_with(&["--log-level", "debug,reqsign_core=trace"]);
        write_files(&mount.at, 0..FILES);
        wait_until("all are proven", || volume.is_settled());
        assert_eq!(volume.copies_at("s3"), FILES as u64);
        store.kill();
        write_files(&mount.at, FILES..2 * FILES);
        all_read(&mount.at, 2 * FILES);
        let status = volume.status();
        assert_ne!(status["queue"]["pending"], 0, "{status}");
        store.start_again();
        wait_until("it has healed", || {
            volume.copies_at("s3") == 2 * FILES as u64 && volume.is_settled()
        });
        volume.cairn(&["checkpoint", "--now"]).ok();
        let shown = volume.cairn(&["config", "show"]).ok().stdout;
        assert!(shown.contains("s3://bucket/volumes") && !shown.contains(SECRET), "{shown}");
        mount.umount().ok();
        volume.cairn(&["fsck"]).ok();
        assert_eq!(has_secret(&volume.dir), None, "a secret was written down");
        assert_eq!(has_secret(&world.path("mnt")), None);
        fs::remove_dir_all(&volume.dir).unwrap();
        // Another machine, where the keys lie elsewhere.
        let moved = world.path("other-keys");
        fs::rename(store.keys(), &moved).unwrap();
        let from = url.replace(store.keys().to_str().unwrap(), moved.to_str().unwrap());
        world.cairn(&["recover", "--from", &from, "--volume", &volume.text()]).ok();
        let backends = volume.cairn(&["--json", "backend", "list"]).ok().stdout;
        assert_eq!(backends.matches("s3://").count(), 1, "{backends}");
        let mount = volume.mount();
        all_read(&mount.at, 2 * FILES);
        write_files(&mount.at, 2 * FILES..3 * FILES);
        wait_until("it is written to again", || volume.copies_at("s3") == 3 * FILES as u64);
        mount.umount().ok();
        volume.cairn(&["fsck"]).ok();
    }
}

#[test]
fn what_lies_in_a_bucket_is_a_directory_backend_when_it_is_copied_into_a_folder() {
    with_each("s3::copied", |world, store| {
        wait(async {
            let place = opened(&store.url("p", ""), true);
            let blocks = [block(1, 10), block(2, 5000), Block::raw(Bytes::new())];
            place.put_many(&blocks).await.unwrap();
            place.put_name("volumes/x/manifest-1", &blocks[0].cid).await.unwrap();
            let folder = world.path("copied");
            let from = store.files("p");
            let base = from.iter().find(|file| file.ends_with("cairn-backend.json")).unwrap();
            for file in &from {
                let to = folder.join(file.strip_prefix(base.parent().unwrap()).unwrap());
                fs::create_dir_all(to.parent().unwrap()).unwrap();
                fs::copy(file, to).unwrap();
            }
            let disk = opened(folder.to_str().unwrap(), false);
            for block in &blocks {
                let data = disk.get(&block.cid, None).await.unwrap();
                assert_eq!(cid::verify(&block.cid, &data), cid::Verdict::Match);
            }
            assert_eq!(disk.list(None, 10).await.unwrap(), place.list(None, 10).await.unwrap());
            assert_eq!(disk.names("").await.unwrap(), place.names("").await.unwrap());
        });
    });
}

/// A certificate for 127.0.0.1 and its key, and the authority that signed it.
pub fn certificates(dir: &Path) -> Option<(PathBuf, PathBuf, PathBuf)> {
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let (ca, ca_key, request) = (at("ca.pem"), at("ca.key"), at("request"));
    let (cert, key, extensions) = (at("cert.pem"), at("cert.key"), at("extensions"));
    fs::write(&extensions, "subjectAltName=IP:127.0.0.1\nbasicConstraints=CA:FALSE\n").unwrap();
    let new = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    let authority = ["-x509", "-subj", "/CN=test-authority", "-days", "2"];
    let runs: [Vec<&str>; 3] = [
        [&["req"], &new[..], &authority, &["-keyout", &ca_key, "-out", &ca]].concat(),
        [&["req"], &new[..], &["-subj", "/CN=store", "-keyout", &key, "-out", &request]].concat(),
        vec![
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &extensions,
            "-out",
            &cert,
        ],
    ];
    for words in runs {
        let ended = Command::new("openssl").args(&words).output().ok()?;
        assert!(ended.status.success(), "{}", String::from_utf8_lossy(&ended.stderr));
    }
    Some((cert.into(), key.into(), ca.into()))
}

#[test]
fn a_store_with_a_certificate_of_ones_own_is_trusted_by_its_authority_only() {
    let world = World::new();
    let Some((cert, key, ca)) = certificates(&world.make_dir("tls")) else {
        return skip("s3::tls", "openssl cannot be run");
    };
    let tls = Some((cert, key));
    let Some(store) = Store::start_with(&world, Software::VersityGw, "s3::tls", tls) else {
        return;
    };
    let url = store.url("p", "");
    let error = open(&BackendSpec::parse(&url, &[]).unwrap(), true).err().unwrap();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.message.contains("name its authority with ca="), "{error}");
    opened(&store.url("p", &format!("&ca={}", ca.display())), true);
}
