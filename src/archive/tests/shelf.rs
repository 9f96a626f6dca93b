use super::build::Blocks;
use crate::archive::Shelf;
use crate::content::Profile;
use crate::types::cid;

const TINY: Profile = Profile { chunk_size: 32, max_links: 4, ..Profile::UNIXFS_V1_2025 };

#[test]
fn the_blocks_of_a_folder_of_archives_are_found_and_damage_hides_no_other() {
    let dir = tempfile::tempdir().unwrap();
    let blocks = Blocks::default();
    let roots: Vec<_> = (0..3u8)
        .map(|n| blocks.file(&TINY, &[n; 300].iter().chain(&[n, 1]).copied().collect::<Vec<u8>>()))
        .collect();
    for (n, version) in [(0, 1), (1, 2)] {
        let car = blocks.car(version, &[roots[n].cid]);
        std::fs::write(dir.path().join(format!("{n}.car")), car).unwrap();
    }
    // The last block is cut off.
    let car = blocks.car(1, &[roots[2].cid]);
    std::fs::write(dir.path().join("2.car"), &car[..car.len() - 1]).unwrap();
    std::fs::write(dir.path().join("3.car"), "no archive").unwrap();
    std::fs::write(dir.path().join("4.txt"), "not looked at").unwrap();
    let shelf = Shelf::open(dir.path(), &mut |_| {}).unwrap();
    assert_eq!((shelf.archives(), shelf.damaged().len()), (4, 2), "{:?}", shelf.damaged());
    assert!(shelf.damaged()[0].contains("2.car") && shelf.damaged()[1].contains("3.car"));
    let mut lacking = 0;
    for (id, data) in blocks.0.borrow().iter() {
        match shelf.block(id).unwrap() {
            Some(found) => assert_eq!(found, *data),
            None => lacking += 1,
        }
    }
    assert_eq!(lacking, 1, "that of the archive that was cut off");
    assert_eq!(shelf.block(&cid::of_raw(b"other")).unwrap(), None);
    // What a file says later is for whoever hashes it.
    std::fs::remove_file(dir.path().join("0.car")).unwrap();
    assert!(shelf.block(&roots[0].cid).is_err());
}
