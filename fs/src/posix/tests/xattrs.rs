//! Extended attributes.

use raftstore::meta::XattrMode;

use super::*;

async fn set(vfs: &Vfs, ino: Ino, name: &[u8], value: &[u8]) -> Result<(), FsError> {
    let value = Bytes::copy_from_slice(value);
    vfs.set_xattr(ino, name, value, XattrMode::Set, false).await
}

#[tokio::test]
async fn values_come_back_on_every_node() {
    let (_cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    refused(other.get_xattr(ino, b"user.a").await, libc::ENODATA);
    set(&one, ino, b"user.a", b"1").await.unwrap();
    set(&one, ino, b"trusted.t", b"2").await.unwrap();
    assert_eq!(&other.get_xattr(ino, b"user.a").await.unwrap()[..], b"1");
    refused(other.get_xattr(ino, b"user.b").await, libc::ENODATA);
    assert_eq!(
        other.list_xattrs(ino, ROOT).await.unwrap(),
        b"trusted.t\0user.a\0"
    );
    assert_eq!(other.list_xattrs(ino, USER).await.unwrap(), b"user.a\0");
    other.remove_xattr(ino, b"user.a").await.unwrap();
    refused(one.remove_xattr(ino, b"user.a").await, libc::ENODATA);
}

#[tokio::test]
async fn modes_and_namespaces_are_kept_apart() {
    let (_cluster, one, _) = two_nodes();
    let ino = file(&one, "f").await;
    let value = Bytes::from_static(b"v");
    let replace = one
        .set_xattr(ino, b"user.a", value.clone(), XattrMode::Replace, false)
        .await;
    refused(replace, libc::ENODATA);
    set(&one, ino, b"user.a", b"v").await.unwrap();
    let create = one
        .set_xattr(ino, b"user.a", value, XattrMode::Create, false)
        .await;
    refused(create, libc::EEXIST);
    refused(set(&one, ino, b"system.other", b"v").await, libc::EOPNOTSUPP);
    refused(set(&one, ino, b"user.", b"v").await, libc::EOPNOTSUPP);
    refused(set(&one, ino, b"user.big", &vec![0; 65_537]).await, libc::E2BIG);
}

#[tokio::test]
async fn capabilities_go_when_contents_or_owner_change() {
    let (_cluster, one, other) = two_nodes();
    let ino = file(&one, "f").await;
    let capability = b"security.capability";
    let chown = raftstore::meta::AttrChange {
        uid: Some(7),
        ..Default::default()
    };
    set(&one, ino, capability, b"cap").await.unwrap();
    write(&other, ino, 0, b"x").await;
    refused(one.get_xattr(ino, capability).await, libc::ENODATA);
    set(&one, ino, capability, b"cap").await.unwrap();
    other.setattr(ino, chown).await.unwrap();
    refused(one.get_xattr(ino, capability).await, libc::ENODATA);
    set(&one, ino, b"user.kept", b"x").await.unwrap();
    write(&other, ino, 0, b"x").await;
    assert!(one.get_xattr(ino, b"user.kept").await.is_ok());
}
