//! Servers that speak no TLS themselves, behind one that does it for them.

use std::path::Path;
use std::time::Duration;

use cairnfs::backends::{Backend, BackendSpec, ErrorKind, Presence, open};
use cairnfs::runtime::Bridge;
use cairnfs::types::Block;

use crate::s3::certificates;
use crate::support::{ClusterPeer, KuboDaemon, TlsFront, World, skip};

/// Trusted with its authority (`ca=`), and refused with what to do without, and with another.
fn is_trusted_by_its_authority_only(url: &str, ca: &Path, other: &Path) {
    let bridge = Bridge::start(2).unwrap();
    let by = |more: &str| open(&BackendSpec::parse(&format!("{url}{more}"), &[]).unwrap(), true);
    let strange = format!("&ca={}", other.display());
    for (more, who) in [("", "none"), (strange.as_str(), "another")] {
        let refused = by(more).err().unwrap();
        assert_eq!(refused.kind, ErrorKind::Unavailable, "{who}: {refused}");
        assert!(refused.message.contains("ca="), "{who}: {refused}");
    }
    let place = by(&format!("&ca={}", ca.display())).unwrap();
    let wait = |block: &Block, place: &dyn Backend| {
        let all = async {
            place.put(block).await?;
            let found = place.presence(&[block.cid]).await?;
            assert_eq!(found, [Presence::Present(block.data.len() as u64)]);
            place.get(&block.cid, None).await
        };
        bridge.wait(Duration::from_mins(1), all).unwrap().unwrap()
    };
    let block = Block::raw(vec![7; 300_000].into());
    assert_eq!(wait(&block, place.as_ref()), block.data);
}

#[test]
fn kubo_and_a_cluster_behind_tls_are_trusted_by_their_authority_only() {
    let (world, test) = (World::new(), "tls::kubo");
    let made = [certificates(&world.make_dir("one")), certificates(&world.make_dir("two"))];
    let [Some((cert, key, ca)), Some((_, _, other))] = made else {
        return skip(test, "openssl cannot be run");
    };
    let Some(peers) = ClusterPeer::start(&world, test, 1) else { return };
    let kubo: &KuboDaemon<'_> = &peers[0].kubo;
    let front = |port: u16| TlsFront::start(&world, test, port, &cert, &key);
    let Some(by_kubo) = front(kubo.port()) else { return };
    let Some(by_rest) = front(peers[0].port) else { return };
    let url = format!("ipfs+https://127.0.0.1:{}/tls?durable=1", by_kubo.port());
    is_trusted_by_its_authority_only(&url, &ca, &other);
    let url = format!(
        "ipfs-cluster+https://127.0.0.1:{}/tls?durable=1&kubo=ipfs%2Bhttps://127.0.0.1:{}",
        by_rest.port(),
        by_kubo.port()
    );
    is_trusted_by_its_authority_only(&url, &ca, &other);
}
