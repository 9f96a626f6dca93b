use super::super::{BackendSpec, ErrorKind, open};

fn spec(url: &str) -> BackendSpec {
    BackendSpec::parse(url, &[]).unwrap()
}

#[test]
fn an_sftp_url_says_user_host_port_folder_and_settings() {
    for (text, id, place) in [
        ("sftp://me@nas/srv/cairn", "cairn", "sftp://nas:22/srv/cairn/?tier=x"),
        ("sftp://me@nas:2222/~/Copies?identity=/k&id=x", "x", "sftp://me@NAS:2222/~/Copies"),
        ("sftp://[::1]/a%20b?config=/c&known_hosts=/h", "a-20b", "sftp://localhost/a%20b"),
    ] {
        let parsed = spec(text);
        if !text.contains("%20") {
            assert_eq!(parsed.id.as_str(), id, "{text}");
        }
        assert_eq!(spec(&parsed.url).url, parsed.url, "what is stored is read back the same");
        assert!(parsed.is_same_place(&spec(place)) && parsed.path().is_none(), "{place}");
    }
    let homes = (spec("sftp://one@nas/~/x"), spec("sftp://two@nas/~/x"));
    assert!(!homes.0.is_same_place(&homes.1));
    // Where a key is, is this machine's, and nothing that a manifest says.
    let told = spec("sftp://h/x?identity=/evil&config=/evil&known_hosts=/evil&tier=t");
    assert_eq!(told.without_auth().url, "sftp://h/x?tier=t");
    let ours = spec("sftp://h/x?identity=/ours");
    assert_eq!(told.with_auth_of(&ours).url, "sftp://h/x?tier=t&identity=%2Fours");
}

#[test]
fn a_wrong_sftp_url_says_what_to_write() {
    for (url, hint) in [
        ("sftp:///x", "write sftp://USER@HOST/folder"),
        ("sftp://nas", "a folder of its own"),
        ("sftp://nas/", "a folder of its own"),
        ("sftp://nas/~/", "a folder of its own"),
        ("sftp://nas/~", "a folder of its own"),
        ("sftp://nas/a//b", "a folder of its own"),
        ("sftp://nas/a%0ab", "a folder of its own"),
        ("sftp://-oProxyCommand=x/y", "write sftp://USER@HOST/folder"),
        ("sftp://-l@nas/y", "not a user's name"),
        ("sftp://me:hidden@nas/y", "identity="),
        ("sftp://nas/x?identity=key", "/the/whole/path"),
        ("sftp://nas/x?identity=/a%22b", "/the/whole/path"),
        ("sftp://nas/x?password=hidden", "identity="),
        ("sftp://nas/x?colour=red", "identity, config, known_hosts"),
    ] {
        let message = BackendSpec::parse(url, &[]).unwrap_err().to_string();
        assert!(message.contains(hint), "{url}: {message}");
        assert!(!message.contains("hidden"), "{message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn who_is_not_there_says_so() {
    // A port of this machine that nobody listens at.
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let Err(error) = open(&spec(&format!("sftp://127.0.0.1:{port}/x?config=/dev/null")), true)
    else {
        panic!("nobody is there")
    };
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.message.contains("does sshd run"), "{error}");
}
