use super::super::{BackendSpec, ErrorKind, open};

fn spec(url: &str) -> BackendSpec {
    BackendSpec::parse(url, &[]).unwrap()
}

#[test]
fn an_s3_url_says_bucket_prefix_and_settings() {
    for (text, id, url, place) in [
        (
            "s3://backups/cairn?endpoint=http://127.0.0.1:9000&region=eu-1",
            "backups",
            "s3://backups/cairn?endpoint=http%3A%2F%2F127.0.0.1%3A9000&region=eu-1",
            "s3://backups/cairn?endpoint=http://127.0.0.1:9000&tier=x",
        ),
        (
            "s3://My.Bucket?style=path&id=x",
            "x",
            "s3://My.Bucket?style=path",
            "s3://My.Bucket/?style=path",
        ),
        (
            "s3://bucket/a/b/?storage_class=STANDARD_IA&sse=aws:kms&sse_key=arn:aws:kms:x:1:key/2&profile=work",
            "bucket",
            "s3://bucket/a/b/?storage_class=STANDARD_IA&sse=aws%3Akms&sse_key=arn%3Aaws%3Akms%3Ax%3A1%3Akey%2F2&profile=work",
            "s3://bucket/a/b",
        ),
        (
            "s3://bucket?endpoint=https://s3.example.org&ca=/etc/ca.pem&auth=file:/etc/keys&checksum=md5&conditional=0&tier=cloud",
            "bucket",
            "s3://bucket?endpoint=https%3A%2F%2Fs3.example.org&ca=%2Fetc%2Fca.pem&auth=file%3A%2Fetc%2Fkeys&checksum=md5&conditional=0&tier=cloud",
            "s3://bucket?endpoint=https://s3.example.org",
        ),
    ] {
        let parsed = spec(text);
        assert_eq!((parsed.id.as_str(), parsed.url.as_str()), (id, url));
        assert_eq!(spec(&parsed.url).url, url, "what is stored is read back the same");
        assert!(parsed.is_same_place(&spec(place)) && parsed.path().is_none(), "{place}");
    }
}

#[test]
fn a_wrong_s3_url_says_what_to_write() {
    for (url, hint) in [
        ("s3:///prefix", "write s3://BUCKET/PREFIX"),
        ("s3://ab", "3 to 63 letters"),
        ("s3://b%20d/x", "not a bucket's name"),
        ("s3://b--usw2-az1--x-s3/x", "directory bucket"),
        ("s3://bucket:9000/x", "endpoint=http://HOST:PORT"),
        ("s3://bucket/a//b", "single slashes"),
        ("s3://bucket/a b", "not a prefix"),
        ("s3://bucket?endpoint=localhost:9000", "write endpoint=https://HOST"),
        ("s3://bucket?endpoint=ftp://host", "not http or https"),
        ("s3://bucket?endpoint=https://host/path", "more than a host"),
        ("s3://bucket?region=", "eu-central-1"),
        ("s3://bucket?style=other", "path or virtual"),
        ("s3://a.bucket", "style=path"),
        ("s3://a.bucket?style=virtual&endpoint=http://h", "style=path"),
        ("s3://bucket?ca=relative.pem", "/the/whole/path"),
        ("s3://bucket?ca=/ca.pem&endpoint=http://host", "https"),
        ("s3://bucket?auth=file:keys", "/the/whole/path"),
        ("s3://bucket?profile=", "name of a profile"),
        ("s3://bucket?storage_class=GLACIER", "cannot be read"),
        ("s3://bucket?storage_class=standard", "write one of STANDARD"),
        ("s3://bucket?sse=rot13", "AES256 or aws:kms"),
        ("s3://bucket?sse_key=k", "sse=aws:kms"),
        ("s3://bucket?checksum=sha1", "crc32c, md5 or none"),
        ("s3://bucket?conditional=perhaps", "write 1 or 0"),
        ("s3://bucket?region=a&region=b", "twice"),
        ("s3://bucket?colour=red", "endpoint, region, style"),
        ("file:///x?region=eu", "`region` is not a setting"),
        ("s3://bucket#x", "%23"),
    ] {
        let message = BackendSpec::parse(url, &[]).unwrap_err().to_string();
        assert!(message.contains(hint), "{url}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn urls_of_other_clouds_say_where_and_how() {
    for (text, id, place) in [
        ("azblob://box/a/b?account=mine&tier=cloud", "box", "azblob://box/a/b/?account=mine"),
        (
            "azblob://box?account=mine&endpoint=http://127.0.0.1:1/me&auth=file:/k&packs=0&id=x",
            "x",
            "azblob://box?account=mine&endpoint=http://127.0.0.1:1/me",
        ),
        ("gcs://buck.et/p?storage_class=NEARLINE&auth=env:K", "buck-et", "gcs://buck.et/p"),
        (
            "gcs://bucket?endpoint=https://h&ca=/ca.pem&anonymous=1&conditional=0",
            "bucket",
            "gcs://bucket?endpoint=https://h",
        ),
    ] {
        let parsed = spec(text);
        assert_eq!(parsed.id.as_str(), id, "{text}");
        assert_eq!(spec(&parsed.url).url, parsed.url, "what is stored is read back the same");
        assert!(parsed.is_same_place(&spec(place)) && parsed.path().is_none(), "{place}");
    }
    for (url, hint) in [
        ("azblob://box/x", "write account=NAME"),
        ("azblob://Box?account=mine", "not a container's name"),
        ("azblob://bo_x?account=mine", "not a container's name"),
        ("azblob://box:80?account=mine", "not a container's name"),
        ("azblob://box?account=Me!", "write its name"),
        ("azblob://box?account=mine&endpoint=ftp://h", "not http or https"),
        ("azblob://box?account=mine&endpoint=http://h&ca=/x", "https"),
        ("azblob://box?account=mine&region=x", "account, endpoint, auth"),
        ("azblob://box/a b?account=mine", "not a prefix"),
        ("gcs://Bucket", "not a bucket's name"),
        ("gcs://b", "not a bucket's name"),
        ("gcs://bucket?storage_class=COOL", "STANDARD, NEARLINE"),
        ("gcs://bucket?anonymous=1&auth=file:/k", "leave one of them out"),
        ("gcs://bucket?anonymous=maybe", "write 1 or 0"),
    ] {
        let message = BackendSpec::parse(url, &[]).unwrap_err().to_string();
        assert!(message.contains(hint), "{url}: {message}");
        assert_eq!(message.lines().count(), 1, "{message}");
    }
}

#[test]
fn a_url_with_a_secret_is_refused_with_advice_and_not_shown() {
    for url in [
        "s3://AKIA:hidden@bucket/x",
        "s3://hidden@bucket/x",
        "s3://bucket?secret_access_key=hidden",
        "s3://bucket?access_key_id=hidden&region=eu",
        "s3://bucket?AWS_SESSION_TOKEN=hidden",
        "s3://bucket?password=hidden",
        "s3://bucket?auth=hidden",
        "s3://bucket?endpoint=https://me:hidden@host",
        "s3://bucket?endpoint=https%3A%2F%2Fme%3Ahidden%40host",
        "azblob://me:hidden@box?account=mine",
        "azblob://box?account=mine&sas_token=hidden",
        "gcs://bucket?credential=hidden",
        "gcs://hidden@bucket",
        "file:///x?secret=hidden",
    ] {
        let error = BackendSpec::parse(url, &[]).unwrap_err();
        let message = format!("{error} {error:?}");
        assert!(message.contains("write auth=file:/path (of mode 0600)"), "{url}: {message}");
        assert!(!message.contains("hidden"), "{message}");
    }
}

#[test]
fn a_store_elsewhere_is_neither_this_host_nor_this_site() {
    let near = spec("s3://bucket?endpoint=http://localhost:9000").settings();
    assert_eq!((near.host, near.site, near.provider), (None, None, None));
    let far = spec("s3://bucket?endpoint=https://s3.example.org:8443&site=zurich").settings();
    assert_eq!(far.host.as_deref(), Some("s3.example.org:8443"));
    assert_eq!(far.site.as_deref(), Some("zurich"));
    assert_eq!(far.provider.as_deref(), Some("s3.example.org:8443"));
}

#[test]
fn a_recovered_place_takes_its_keys_from_this_machine_and_keeps_what_it_is() {
    let known =
        spec("s3://b00/p?endpoint=http://h&auth=file:/old&region=a&tier=cloud&domain=x&id=k");
    let now = spec("s3://b00/p?endpoint=http://h&auth=file:/new&style=path&domain=y");
    assert!(known.is_same_place(&now) && !known.is_same_place(&spec("s3://b00/p")));
    let taken = known.with_auth_of(&now);
    assert_eq!(taken.id.as_str(), "k");
    assert_eq!(
        taken.url,
        "s3://b00/p?endpoint=http%3A%2F%2Fh&tier=cloud&domain=x&auth=file%3A%2Fnew&style=path"
    );
    let disk = spec("/mnt/b?domain=x");
    assert_eq!(disk.with_auth_of(&disk).url, disk.url);
    let told = spec("s3://b00/p?endpoint=http://h&auth=file:/old&profile=x&region=a");
    assert_eq!(told.without_auth().url, "s3://b00/p?endpoint=http%3A%2F%2Fh&region=a");
}

#[test]
fn keys_that_are_missing_or_open_to_others_are_told_before_anything_is_sent() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("keys");
    let url = format!("s3://bucket/p?endpoint=http://127.0.0.1:1&auth=file:{}", file.display());
    let refused = || open(&spec(&url), true).err().unwrap();
    assert_eq!(refused().kind, ErrorKind::Denied);
    std::fs::write(&file, "AWS_ACCESS_KEY_ID=hidden\n").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
    assert!(refused().message.contains("chmod 600"), "{}", refused());
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    let error = refused();
    assert!(error.message.contains("has no AWS_ACCESS_KEY_ID and"), "{error}");
    assert!(!error.message.contains("hidden"), "{error}");
    std::fs::write(&file, "AWS_ACCESS_KEY_ID=a\nAWS_SECRET_ACCESS_KEY=hidden\n").unwrap();
    let error = refused();
    assert_eq!(error.kind, ErrorKind::Unavailable, "{error}");
    assert!(error.message.contains("is the store running"), "{error}");
    assert!(!format!("{error:?}").contains("hidden"), "{error:?}");
}
