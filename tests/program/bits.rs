//! A network that changes what is answered: before each kind of backend that is reached by one.

use std::fs;

use crate::nodes::Node;
use crate::support::{
    ClusterPeer, KuboDaemon, Proxy, Software, Store, World, all_read, content, wait_until,
    write_files,
};

const FILES: usize = 16;

/// A volume on one place that is reached through these proxies, which change a bit of each
/// fifth answer: it is recovered from there alone, read and proven.
fn serves_no_wrong_byte(world: &World, url: &str, proxies: &[Proxy]) {
    let flip = |flips| proxies.iter().for_each(|proxy| proxy.flip(flips));
    let volume = world.volume(&[], "min=1,target=2,max=2");
    volume.cairn(&["backend", "add", url]).ok();
    let mount = volume.mount();
    write_files(&mount.at, 0..FILES / 2);
    write_files(&mount.at, FILES / 2..FILES);
    wait_until("all are proven", || volume.is_settled());
    volume.cairn(&["checkpoint", "--now"]).ok();
    mount.umount().ok();
    fs::remove_dir_all(&volume.dir).unwrap();
    flip(true);
    // A manifest that does not match is not believed; an older one may be.
    wait_until("it is recovered", || {
        drop(fs::remove_dir_all(&volume.dir));
        world.cairn(&["recover", "--from", url, "--volume", &volume.text()]).code == 0
            && volume.cairn(&["--json", "fsck"]).code == 0
            && volume.status()["pins"]["total"] == FILES
    });
    let mount = volume.mount();
    for n in 0..FILES {
        let mut errors = 0;
        wait_until("it is read", || match fs::read(mount.at.join(format!("f{n}"))) {
            Ok(bytes) => {
                assert!(bytes == content(n), "f{n} has wrong bytes");
                true
            }
            Err(error) => {
                errors += 1;
                eprintln!("f{n}: {error}");
                assert!(errors < 20, "f{n}: {error}");
                false
            }
        });
    }
    // Its copies are read back: what came changed is not taken for lost.
    drop(world.cairn(&["pin", "verify", &mount.text(""), "--wait"]));
    wait_until("all are proven", || volume.is_settled());
    let harmed: usize = proxies.iter().map(Proxy::harmed).sum();
    assert!(harmed > 5, "{harmed} were harmed");
    mount.umount().ok();
    // By a good way all is there.
    flip(false);
    fs::remove_dir_all(&volume.dir).unwrap();
    world.cairn(&["recover", "--from", url, "--volume", &volume.text()]).ok();
    let mount = volume.mount();
    all_read(&mount.at, FILES);
    mount.umount().ok();
    volume.cairn(&["fsck"]).ok();
}

#[test]
fn a_store_of_s3_whose_answers_change_serves_no_wrong_byte_and_loses_nothing() {
    for software in Software::ALL {
        let Some(world) = World::mountable("bits::s3") else { return };
        let Some(store) = Store::start(&world, software, "bits::s3") else { continue };
        let proxy = Proxy::counting(store.port());
        let url = store.url_by(proxy.port(), "bits", "&id=s3");
        serves_no_wrong_byte(&world, &url, &[proxy]);
    }
}

#[test]
fn a_kubo_whose_answers_change_serves_no_wrong_byte_and_loses_nothing() {
    let Some(world) = World::mountable("bits::kubo") else { return };
    let Some(kubo) = KuboDaemon::start(&world, "bits::kubo") else { return };
    let proxy = Proxy::counting(kubo.port());
    let url = kubo.url("bits").replace(&kubo.port().to_string(), &proxy.port().to_string());
    serves_no_wrong_byte(&world, &url, &[proxy]);
}

#[test]
fn a_cluster_whose_answers_change_serves_no_wrong_byte_and_loses_nothing() {
    let Some(world) = World::mountable("bits::cluster") else { return };
    let Some(peers) = ClusterPeer::start(&world, "bits::cluster", 1) else { return };
    let (rest, kubo) = (Proxy::counting(peers[0].port), Proxy::counting(peers[0].proxy));
    let url = format!(
        "ipfs-cluster://127.0.0.1:{}/bits?kubo=ipfs://127.0.0.1:{}&durable=1",
        rest.port(),
        kubo.port()
    );
    serves_no_wrong_byte(&world, &url, &[rest, kubo]);
}

#[test]
fn a_node_whose_answers_change_serves_no_wrong_byte_and_loses_nothing() {
    let Some(world) = World::mountable("bits::node") else { return };
    let node = Node::start(&world, "bits");
    let proxy = Proxy::counting(node.port);
    let url = node.url_by(proxy.port());
    serves_no_wrong_byte(&world, &url, &[proxy]);
}
