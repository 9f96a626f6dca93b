//! Backends in stores that are neither S3's nor alike: Azure's, by Microsoft's own server for
//! one machine, and Google's, by another's, on loopback.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use cairnfs::backends::{Backend, BackendSpec, ErrorKind, PlaceSettings, conformance, open, wrap};
use cairnfs::runtime::Bridge;
use cairnfs::types::{Block, Cid};

use crate::support::{
    CLOUD_KEY, Cloud, CloudKind, Proxy, Volume, World, all_read, patient, wait_until, write_files,
};

const ALL: [CloudKind; 2] = [CloudKind::Azure, CloudKind::Google];

fn opened(url: &str, create: bool) -> Arc<dyn Backend> {
    open(&BackendSpec::parse(url, &[]).unwrap(), create).unwrap()
}

fn wait<T>(bridge: &Bridge, call: impl Future<Output = T>) -> T {
    bridge.wait(Duration::from_mins(10), call).unwrap()
}

fn block(seed: u32, len: usize) -> Block {
    Block::raw(seed.to_le_bytes().into_iter().cycle().take(len).collect::<Vec<u8>>().into())
}

fn with_each(test: &str, run: impl Fn(&World, Cloud<'_>, &Bridge)) {
    for kind in ALL {
        let world = World::new();
        if let Some(cloud) = Cloud::start(&world, kind, test) {
            eprintln!("{kind:?}");
            run(&world, cloud, &Bridge::start(2).unwrap());
        }
    }
}

#[test]
fn places_in_other_clouds_do_what_every_backend_does() {
    with_each("clouds::conformance", |_, cloud, bridge| {
        let count = AtomicU32::new(0);
        for more in ["", "&packs=0"] {
            let make = || {
                let url = cloud.url(&format!("c/{}", count.fetch_add(1, Ordering::Relaxed)), more);
                let place = opened(&url, true);
                async move { wrap::standard(place, Duration::from_secs(30), &PlaceSettings::default()) }
            };
            if let Err(violation) = wait(bridge, conformance::run(make)) {
                panic!("{more}: {violation}");
            }
        }
    });
}

#[test]
fn another_cloud_behind_a_bad_network_does_what_every_backend_does() {
    with_each("clouds::network", |_, cloud, bridge| {
        let proxy = Proxy::start(cloud.port());
        let count = AtomicU32::new(0);
        let make = || {
            let prefix = format!("n/{}", count.fetch_add(1, Ordering::Relaxed));
            // Made by the good way: nobody is asked again while a backend is added.
            opened(&cloud.url(&prefix, ""), true);
            let spec = BackendSpec::parse(&cloud.url_by(proxy.port(), &prefix, ""), &[]).unwrap();
            async move { patient(&spec) }
        };
        if let Err(violation) = wait(bridge, conformance::run(make)) {
            panic!("{violation}");
        }
        assert!(proxy.harmed() > 20, "{} were harmed", proxy.harmed());
    });
}

#[test]
fn more_than_a_page_is_listed_by_several_at_a_time_counted_and_deleted() {
    with_each("clouds::pages", |_, cloud, bridge| {
        let place = opened(&cloud.url("many", "&packs=0&capacity=30kB"), true);
        let blocks: Vec<Block> = (0..500).map(|n| block(n, 40)).collect();
        wait(bridge, place.put_many(&blocks)).unwrap();
        let page = |from: Option<&str>| wait(bridge, place.list(from, 150)).unwrap();
        let mut seen: Vec<Cid> = Vec::new();
        let mut from = None::<String>;
        loop {
            // Who begins anew, and who goes on from a page before, disturb nobody.
            let first = page(None);
            assert_eq!(page(first.next.as_deref()), page(first.next.as_deref()));
            let here = page(from.as_deref());
            seen.extend(here.blocks.iter().map(|(id, _)| *id));
            from = here.next;
            if from.is_none() {
                break;
            }
        }
        let distinct: std::collections::BTreeSet<_> = seen.iter().copied().collect();
        assert_eq!((seen.len(), distinct.len()), (500, 500));
        assert_eq!(wait(bridge, place.usage()).unwrap().used_bytes, Some(20_000));
        let error = wait(bridge, place.put(&block(9999, 12_000))).unwrap_err();
        assert_eq!(error.kind, ErrorKind::Full, "{error}");
        wait(bridge, place.delete_many(&seen)).unwrap();
        assert_eq!(wait(bridge, place.list(None, 10)).unwrap().blocks, []);
        wait(bridge, place.put(&block(9999, 12_000))).unwrap();
    });
}

#[test]
fn of_two_that_write_one_name_at_a_time_in_a_cloud_one_fails_or_both_are_whole() {
    with_each("clouds::names", |_, cloud, bridge| {
        let (one, two) =
            (opened(&cloud.url("race", ""), true), opened(&cloud.url("race", ""), true));
        let cids: Vec<Cid> = (0..40).map(|n| block(n, 9).cid).collect();
        for pair in cids.chunks(2) {
            let both = async {
                tokio::join!(one.put_name("head", &pair[0]), two.put_name("head", &pair[1]))
            };
            let (first, second) = wait(bridge, both);
            let found = wait(bridge, one.names("head")).unwrap();
            let winners: Vec<Cid> = [(&first, pair[0]), (&second, pair[1])]
                .into_iter()
                .filter(|(ended, _)| ended.is_ok())
                .map(|(_, cid)| cid)
                .collect();
            assert!(winners.contains(&found[0].1), "{first:?} {second:?} {found:?}");
        }
    });
}

#[test]
fn what_a_cloud_refuses_is_told_and_no_secret_is_shown() {
    let world = World::new();
    let Some(cloud) = Cloud::start(&world, CloudKind::Azure, "clouds::refused") else { return };
    let says = |url: &str, hint: &str| {
        let run = world.cairn(&["backend", "test", url]).fails(1, &[hint]);
        assert!(!run.stderr.contains(CLOUD_KEY), "{run:?}");
    };
    let url = cloud.url("x", "");
    says(&url, "`cairn backend add` makes");
    says(&url.replace("//bucket/", "//other/"), "no such container");
    says(url.split("&auth=").next().unwrap(), "AZURE_STORAGE_ACCOUNT_KEY");
    drop(opened(&url, true));
    let run = world.cairn(&["backend", "test", &url]).ok();
    assert!(run.stdout.contains("presence"), "{run:?}");
    let wrong = CLOUD_KEY.replace('N', "M");
    fs::write(world.path("cloud-key"), format!("AZURE_STORAGE_ACCOUNT_KEY={wrong}\n")).unwrap();
    says(&url, "the key is not the account's");
    drop(cloud);
    says(&url, "is the store running");
    let Some(cloud) = Cloud::start(&world, CloudKind::Google, "clouds::refused") else { return };
    let url = cloud.url("x", "");
    says(&url, "`cairn backend add` makes");
    says(&url.replace("&anonymous=1", ""), "anonymous=1");
    fs::write(world.path("cloud-key"), "{}").unwrap();
    let keyed = format!("&auth=file:{}", world.path("cloud-key").display());
    says(&url.replace("&anonymous=1", &keyed), "service account");
}

#[test]
fn a_volume_in_another_cloud_goes_on_without_it_and_comes_back_from_it_alone() {
    for kind in ALL {
        let test = "clouds::volume";
        let Some(world) = World::mountable(test) else { return };
        let Some(mut cloud) = Cloud::start(&world, kind, test) else { return };
        let url = format!("{}&id=cloud", cloud.url("volume", ""));
        let volume = Volume { world: &world, dir: world.path("volume") };
        let text = volume.text();
        let policy = "min=1,target=2,max=2,level=QUORUM";
        world.cairn(&["init", "--volume", &text, "--policy", policy, "--backend", &url]).ok();
        volume.probe_often();
        let mount = volume.mount();
        write_files(&mount.at, 0..8);
        wait_until("all are proven", || volume.copies_at("cloud") == 8 && volume.is_settled());
        cloud.down();
        write_files(&mount.at, 8..12);
        assert_eq!(volume.copies_at("cloud"), 8);
        cloud.up();
        volume.cairn(&["backend", "recover", "cloud"]).ok();
        wait_until("it catches up", || volume.copies_at("cloud") == 12 && volume.is_settled());
        volume.cairn(&["checkpoint", "--now"]).ok();
        mount.umount().ok();
        fs::remove_dir_all(&volume.dir).unwrap();
        world.cairn(&["recover", "--from", &url, "--volume", &text]).ok();
        let mount = volume.mount();
        all_read(&mount.at, 12);
        mount.umount().ok();
        volume.cairn(&["fsck"]).ok();
    }
}
