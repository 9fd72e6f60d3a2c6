//! Each of the kernel's requests as a call of the [`Vfs`].

use std::ffi::OsStr;
use std::future::Future;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    AccessFlags, BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo,
    InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate,
    ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLock, ReplyLseek,
    ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, RequestId, TimeOrNow, WriteFlags,
};
use raftstore::meta::{AttrChange, FileKind, Inode, LockKind, NewInode, Refusal};
use tokio::runtime::Handle;
use tokio::sync::Notify;

use super::convert;
use super::reply::Refuse;
use super::tasks::{Patience, Tasks};
use crate::backend::{Loan, Look};
use crate::posix::{
    Caller, DirEntry, FsError, LockRange, LockRequest, Seek, Vfs, WriteRequest, XATTR_LIST_BYTES_MAX,
};

/// What was just changed is asked for again.
const TTL: Duration = Duration::ZERO;
/// Inode numbers are never used again.
const GENERATION: Generation = Generation(0);
/// Largest write that the kernel sends at once, bytes.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// Requests that no thread waits for (read-ahead, direct I/O, write-back of mapped pages) at the same time.
const BACKGROUND_MAX: u16 = 24;
/// Entries of a directory that are held in memory for one request.
const DIR_ENTRIES_MAX: usize = 512;

/// What is asked of the kernel, where it can do it.
const CAPABILITIES: [InitFlags; 15] = [
    InitFlags::FUSE_ASYNC_READ,
    InitFlags::FUSE_POSIX_LOCKS,
    InitFlags::FUSE_FLOCK_LOCKS,
    InitFlags::FUSE_ATOMIC_O_TRUNC,
    InitFlags::FUSE_EXPORT_SUPPORT,
    InitFlags::FUSE_BIG_WRITES,
    InitFlags::FUSE_DONT_MASK,
    InitFlags::FUSE_AUTO_INVAL_DATA,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_POSIX_ACL,
    InitFlags::FUSE_MAX_PAGES,
    InitFlags::FUSE_HANDLE_KILLPRIV_V2,
    InitFlags::FUSE_SETXATTR_EXT,
    InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP,
];

/// The kernel's counterpart.
pub(super) struct BrambleFilesystem {
    vfs: Arc<Vfs>,
    tasks: Tasks,
    /// Whether files that are opened for writing pass by the kernel's cache.
    direct: bool,
}

impl BrambleFilesystem {
    pub(super) fn new(vfs: Arc<Vfs>, runtime: Handle) -> Self {
        Self {
            vfs,
            tasks: Tasks::new(runtime),
            direct: false,
        }
    }

    /// Serves a request that only its own slowness can make interruptible.
    fn serve<R, T, F>(
        &self,
        req: &Request,
        reply: R,
        work: impl FnOnce(Arc<Vfs>) -> F,
        answer: impl FnOnce(R, T) + Send + 'static,
    ) where
        R: Refuse,
        T: Send + 'static,
        F: Future<Output = Result<T, FsError>> + Send + 'static,
    {
        let work = work(self.vfs.clone());
        self.tasks
            .serve(req.unique().0, Patience::Some, reply, work, answer);
    }

    /// Serves a request whose answer is the inode of a name that was made.
    fn serve_entry<F>(&self, req: &Request, reply: ReplyEntry, work: impl FnOnce(Arc<Vfs>) -> F)
    where
        F: Future<Output = Result<Inode, FsError>> + Send + 'static,
    {
        let work = settled(self.vfs.clone(), work(self.vfs.clone()));
        self.tasks.serve(
            req.unique().0,
            Patience::Some,
            reply,
            work,
            move |reply, inode| {
                reply.entry(&TTL, &convert::attributes(&inode), GENERATION);
            },
        );
    }

    fn make(&self, req: &Request, parent: INodeNo, name: &OsStr, new: NewInode, reply: ReplyEntry) {
        let name = owned(name);
        self.serve_entry(
            req,
            reply,
            |vfs| async move { vfs.make(parent.0, &name, new).await },
        );
    }
}

/// An answer with attributes tells the kernel of other nodes' changes. It must not be ahead of the invalidations
/// that go with it, or a program could see a new time and, through a mapping, old bytes.
async fn settled<T>(vfs: Arc<Vfs>, work: impl Future<Output = Result<T, FsError>>) -> Result<T, FsError> {
    let answer = work.await?;
    vfs.invalidations().settled().await;
    Ok(answer)
}

fn owned(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
}

fn caller(req: &Request) -> Caller {
    Caller {
        uid: req.uid(),
        gid: req.gid(),
        handle: None,
    }
}

fn caller_through(req: &Request, fh: FileHandle) -> Caller {
    Caller {
        handle: Some(fh.0),
        ..caller(req)
    }
}

fn new_inode(req: &Request, kind: FileKind, mode: u32, umask: u32) -> NewInode {
    NewInode {
        kind,
        mode: mode & 0o7777,
        umask,
        uid: req.uid(),
        gid: req.gid(),
        rdev: 0,
        target: Bytes::new(),
    }
}

/// Answers a request for an attribute value: its length if `size` is 0, else the value if it fits.
fn answer_xattr(reply: ReplyXattr, value: &[u8], size: u32) {
    let len = u32::try_from(value.len()).unwrap_or(u32::MAX);
    if size == 0 {
        reply.size(len);
    } else if len <= size {
        reply.data(value);
    } else {
        reply.refuse(FsError::BufferTooSmall.errno());
    }
}

impl Filesystem for BrambleFilesystem {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        for capability in CAPABILITIES {
            if config.add_capabilities(capability).is_err() {
                tracing::debug!(?capability, "the kernel cannot do this");
            }
        }
        let _ = config.set_max_write(WRITE_BYTES_MAX);
        let _ = config.set_max_background(BACKGROUND_MAX);
        self.direct = config
            .capabilities()
            .contains(InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP);
        if self.direct {
            self.vfs.invalidations().attach();
        } else {
            tracing::warn!("this kernel is older than 6.6: mapped files may show other nodes' writes late");
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.vfs.invalidations().detach();
    }

    fn interrupt(&self, unique: RequestId) -> bool {
        self.tasks.interrupt(unique.0)
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = owned(name);
        self.serve(
            req,
            reply,
            |vfs| async move {
                let moment = vfs.moment();
                match settled(vfs.clone(), vfs.lookup(parent.0, &name)).await {
                    Ok(inode) if convert::may_keep(&inode) => {
                        let loan = vfs.lend(Look::named(&[parent.0], &[inode.ino]), moment);
                        Ok((Some(inode), loan))
                    }
                    Ok(inode) => Ok((Some(inode), Loan::none())),
                    Err(FsError::Refused(Refusal::NotFound)) => {
                        Ok((None, vfs.lend(Look::whole(&[parent.0]), moment)))
                    }
                    Err(error) => Err(error),
                }
            },
            |reply, (inode, loan)| {
                let attributes = inode.map_or_else(convert::no_entry, |inode| convert::attributes(&inode));
                reply.entry(&loan.time, &attributes, GENERATION);
            },
        );
    }

    fn getattr(&self, req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.serve(
            req,
            reply,
            |vfs| async move {
                let moment = vfs.moment();
                let inode = settled(vfs.clone(), vfs.getattr(ino.0)).await?;
                let loan = if convert::may_keep(&inode) {
                    vfs.lend(Look::attributes(&[ino.0]), moment)
                } else {
                    Loan::none()
                };
                Ok((inode, loan))
            },
            |reply, (inode, loan)| reply.attr(&loan.time, &convert::attributes(&inode)),
        );
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        kill_suid_sgid: bool,
        reply: ReplyAttr,
    ) {
        let change = AttrChange {
            mode: mode.map(|mode| mode & 0o7777),
            uid,
            gid,
            size,
            atime: atime.map(convert::set_time),
            mtime: mtime.map(convert::set_time),
            kill_suid_sgid,
        };
        self.serve(
            req,
            reply,
            |vfs| async move { vfs.setattr_through(ino.0, fh.map(|fh| fh.0), change).await },
            |reply, inode| reply.attr(&TTL, &convert::attributes(&inode)),
        );
    }

    fn readlink(&self, req: &Request, ino: INodeNo, reply: ReplyData) {
        self.serve(
            req,
            reply,
            |vfs| async move { vfs.readlink(ino.0).await },
            |reply, target| reply.data(&target),
        );
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = convert::kind_of_mode(mode) else {
            return reply.error(Errno::EINVAL);
        };
        let new = NewInode {
            rdev,
            ..new_inode(req, kind, mode, umask)
        };
        self.make(req, parent, name, new, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let new = new_inode(req, FileKind::Directory, mode, umask);
        self.make(req, parent, name, new, reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let new = NewInode {
            target: owned(target.as_os_str()),
            ..new_inode(req, FileKind::Symlink, 0o777, 0)
        };
        self.make(req, parent, name, new, reply);
    }

    fn unlink(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = owned(name);
        let work = |vfs: Arc<Vfs>| async move { vfs.unlink(parent.0, &name).await };
        self.serve(req, reply, work, |reply, ()| reply.ok());
    }

    fn rmdir(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = owned(name);
        let work = |vfs: Arc<Vfs>| async move { vfs.rmdir(parent.0, &name).await };
        self.serve(req, reply, work, |reply, ()| reply.ok());
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let Some(mode) = convert::rename_mode(flags) else {
            return reply.error(Errno::EINVAL);
        };
        let (name, new_name) = (owned(name), owned(new_name));
        let work =
            |vfs: Arc<Vfs>| async move { vfs.rename(parent.0, &name, new_parent.0, &new_name, mode).await };
        self.serve(req, reply, work, |reply, ()| reply.ok());
    }

    fn link(&self, req: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let name = owned(name);
        self.serve_entry(
            req,
            reply,
            |vfs| async move { vfs.link(ino.0, parent.0, &name).await },
        );
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, kill_suid_sgid: bool, reply: ReplyOpen) {
        let how = convert::open_flags(flags.0, kill_suid_sgid);
        let how_to_treat = convert::fopen_flags(flags.0, self.direct);
        self.serve(
            req,
            reply,
            |vfs| settled(vfs.clone(), async move { vfs.open(ino.0, how).await }),
            move |reply, file| reply.opened(FileHandle(file.handle), how_to_treat),
        );
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        kill_suid_sgid: bool,
        reply: ReplyCreate,
    ) {
        let name = owned(name);
        let new = new_inode(req, FileKind::Regular, mode, umask);
        let how = convert::open_flags(flags, kill_suid_sgid);
        let how_to_treat = convert::fopen_flags(flags, self.direct);
        self.serve(
            req,
            reply,
            |vfs| async move { vfs.create(parent.0, &name, new, how).await },
            move |reply, file| {
                reply.created(
                    &TTL,
                    &convert::attributes(&file.inode),
                    GENERATION,
                    FileHandle(file.handle),
                    how_to_treat,
                );
            },
        );
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        reader: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let room = self.tasks.read_room();
        // A read(2) has an owner; the page cache, for a mapping, has none.
        if reader.is_none() {
            self.vfs.invalidations().cached(ino.0);
        }
        self.serve(
            req,
            reply,
            |vfs| async move {
                let room = room.take(size).await;
                Ok((vfs.read(ino.0, offset, size).await?, room))
            },
            |reply, (data, _room)| reply.data(&data),
        );
    }

    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        flags: OpenFlags,
        lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let room = self.tasks.write_room(data.len());
        let len = data.len();
        let from_mapping = write_flags.contains(WriteFlags::FUSE_WRITE_CACHE);
        // Also of a single call with RWF_DSYNC or RWF_SYNC.
        let synchronous = flags.0 & (libc::O_DSYNC | libc::O_SYNC) != 0;
        let request = WriteRequest {
            ino: ino.0,
            handle: fh.0,
            owner: lock_owner.map(|owner| owner.0),
            offset,
            data: Bytes::copy_from_slice(data),
            append: flags.0 & libc::O_APPEND != 0 && !from_mapping,
            from_mapping,
            kill_suid_sgid: write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID),
        };
        self.serve(
            req,
            reply,
            |vfs| async move {
                let _room = room.take().await;
                let ino = request.ino;
                let written = vfs.write(request).await?;
                if synchronous {
                    vfs.sync(ino).await?;
                }
                // Mapped bytes beyond an end that has moved are gone, not refused.
                Ok(if from_mapping { len } else { written.len })
            },
            |reply, len| reply.written(u32::try_from(len).unwrap_or(u32::MAX)),
        );
    }

    fn flush(&self, req: &Request, ino: INodeNo, _fh: FileHandle, owner: LockOwner, reply: ReplyEmpty) {
        let work = |vfs: Arc<Vfs>| async move {
            vfs.unlock_process(ino.0, owner.0).await?;
            vfs.check_written(ino.0)
        };
        self.serve(req, reply, work, |reply, ()| reply.ok());
    }

    fn release(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        let vfs = self.vfs.clone();
        let work = async move { vfs.release(ino.0, fh.0).await };
        self.tasks
            .serve(req.unique().0, Patience::Endless, reply, work, |reply, ()| {
                reply.ok();
            });
    }

    fn fsync(&self, req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        let work = |vfs: Arc<Vfs>| async move { vfs.sync(ino.0).await };
        self.serve(req, reply, work, |reply, ()| reply.ok());
    }

    fn opendir(&self, req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.serve(
            req,
            reply,
            |vfs| async move { vfs.open_dir(ino.0).await },
            |reply, dir| reply.opened(FileHandle(dir.handle), fuser::FopenFlags::empty()),
        );
    }

    fn readdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, cookie: u64, reply: ReplyDirectory) {
        self.serve(
            req,
            reply,
            |vfs| async move { vfs.read_dir(ino.0, cookie, DIR_ENTRIES_MAX).await },
            |mut reply, entries| {
                for entry in entries {
                    let name = OsStr::from_bytes(&entry.name);
                    let kind = convert::file_type(entry.kind);
                    if reply.add(INodeNo(entry.ino), entry.cookie, kind, name) {
                        break;
                    }
                }
                reply.ok();
            },
        );
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        cookie: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.serve(
            req,
            reply,
            |vfs| async move {
                let moment = vfs.moment();
                let entries = settled(vfs.clone(), vfs.read_dir_plus(ino.0, cookie, DIR_ENTRIES_MAX)).await?;
                let lend = |(_, inode): &(DirEntry, Inode)| {
                    if convert::may_keep(inode) {
                        vfs.lend(Look::named(&[ino.0], &[inode.ino]), moment)
                    } else {
                        Loan::none()
                    }
                };
                let loans: Vec<Loan> = entries.iter().map(lend).collect();
                Ok((entries, loans))
            },
            |mut reply, (entries, loans)| {
                for ((entry, inode), loan) in entries.iter().zip(&loans) {
                    let name = OsStr::from_bytes(&entry.name);
                    let attr = convert::attributes(inode);
                    if reply.add(
                        INodeNo(entry.ino),
                        entry.cookie,
                        name,
                        &loan.time,
                        &attr,
                        GENERATION,
                    ) {
                        break;
                    }
                }
                reply.ok();
            },
        );
    }

    fn releasedir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.vfs.release_dir(ino.0);
        reply.ok();
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.fsync(req, ino, fh, datasync, reply);
    }

    fn statfs(&self, req: &Request, ino: INodeNo, reply: ReplyStatfs) {
        self.serve(
            req,
            reply,
            move |vfs| async move { vfs.statfs(ino.0).await },
            |reply, space| {
                reply.statfs(
                    space.blocks,
                    space.blocks_free,
                    space.blocks_free,
                    space.inodes.saturating_add(space.inodes_free),
                    space.inodes_free,
                    space.block_bytes,
                    space.name_bytes_max,
                    space.block_bytes,
                );
            },
        );
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        acl_kill_sgid: bool,
        reply: ReplyEmpty,
    ) {
        let Some(mode) = convert::xattr_mode(flags) else {
            return reply.error(Errno::EINVAL);
        };
        let (name, value) = (owned(name), Bytes::copy_from_slice(value));
        let work =
            |vfs: Arc<Vfs>| async move { vfs.set_xattr(ino.0, &name, value, mode, acl_kill_sgid).await };
        self.serve(req, reply, work, |reply, ()| reply.ok());
    }

    fn getxattr(&self, req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        if name == super::ALIVE_XATTR {
            return answer_xattr(reply, b"yes", size);
        }
        let name = owned(name);
        self.serve(
            req,
            reply,
            |vfs| async move { vfs.get_xattr(ino.0, &name).await },
            move |reply, value| answer_xattr(reply, &value, size),
        );
    }

    fn listxattr(&self, req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let caller = caller(req);
        self.serve(
            req,
            reply,
            |vfs| async move {
                let list = vfs.list_xattrs(ino.0, caller).await?;
                if list.len() > XATTR_LIST_BYTES_MAX {
                    return Err(Refusal::AttributeTooLarge.into());
                }
                Ok(list)
            },
            move |reply, list| answer_xattr(reply, &list, size),
        );
    }

    fn removexattr(&self, req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = owned(name);
        let work = |vfs: Arc<Vfs>| async move { vfs.remove_xattr(ino.0, &name).await };
        self.serve(req, reply, work, |reply, ()| reply.ok());
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions (default_permissions), and does not ask again after this answer.
        reply.error(Errno::ENOSYS);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _command: u32,
        _input: &[u8],
        _output_bytes_max: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    fn getlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        reply: ReplyLock,
    ) {
        let request = LockRequest {
            ino: ino.0,
            handle: fh.0,
            token: owner.0,
            kind: LockKind::Posix,
            pid,
            exclusive: typ == libc::F_WRLCK,
            range: convert::lock_range(start, end),
        };
        self.serve(
            req,
            reply,
            |vfs| async move { vfs.get_lock(&request).await },
            move |reply, found| match found {
                None => reply.locked(start, end, libc::F_UNLCK, 0),
                Some(lock) => {
                    let typ = if lock.exclusive {
                        libc::F_WRLCK
                    } else {
                        libc::F_RDLCK
                    };
                    let range = LockRange {
                        start: lock.start,
                        end: lock.end,
                    };
                    let (start, end) = convert::kernel_range(range);
                    reply.locked(start, end, typ, lock.pid);
                }
            },
        );
    }

    fn setlk(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        owner: LockOwner,
        start: u64,
        end: u64,
        typ: i32,
        pid: u32,
        sleep: bool,
        is_flock: bool,
        reply: ReplyEmpty,
    ) {
        let request = LockRequest {
            ino: ino.0,
            handle: fh.0,
            token: owner.0,
            kind: if is_flock {
                LockKind::Flock
            } else {
                LockKind::Posix
            },
            pid,
            exclusive: typ == libc::F_WRLCK,
            range: convert::lock_range(start, end),
        };
        let vfs = self.vfs.clone();
        let interrupt = Arc::new(Notify::new());
        let patience = if sleep {
            Patience::Waiting(interrupt.clone())
        } else {
            Patience::Some
        };
        let work = async move {
            if typ == libc::F_UNLCK {
                vfs.unlock(&request).await
            } else if sleep {
                vfs.lock_until(request, interrupt.notified()).await
            } else {
                vfs.lock(request, false).await
            }
        };
        self.tasks
            .serve(req.unique().0, patience, reply, work, |reply, ()| reply.ok());
    }

    fn fallocate(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let Some(what) = convert::fallocate_mode(mode) else {
            return reply.error(Errno::EOPNOTSUPP);
        };
        let caller = caller_through(req, fh);
        let work = |vfs: Arc<Vfs>| async move { vfs.fallocate(ino.0, what, offset, length, caller).await };
        self.serve(req, reply, work, |reply, ()| reply.ok());
    }

    fn lseek(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let what = match whence {
            libc::SEEK_DATA => Seek::Data,
            libc::SEEK_HOLE => Seek::Hole,
            _ => return reply.error(Errno::EINVAL),
        };
        let Ok(offset) = u64::try_from(offset) else {
            return reply.error(Errno::ENXIO);
        };
        self.serve(
            req,
            reply,
            |vfs| async move { vfs.seek(ino.0, offset, what).await },
            |reply, offset| reply.offset(i64::try_from(offset).unwrap_or(i64::MAX)),
        );
    }

    fn copy_file_range(
        &self,
        req: &Request,
        source: INodeNo,
        _source_fh: FileHandle,
        source_offset: u64,
        target: INodeNo,
        target_fh: FileHandle,
        target_offset: u64,
        len: u64,
        flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        if !flags.is_empty() {
            return reply.error(Errno::EINVAL);
        }
        let caller = caller_through(req, target_fh);
        // The answer has 32 bits.
        let len = len.min(u64::from(u32::MAX) & !0xfff);
        self.serve(
            req,
            reply,
            |vfs| async move {
                vfs.copy_range((source.0, source_offset), (target.0, target_offset), len, caller)
                    .await
            },
            |reply, len| reply.written(u32::try_from(len).unwrap_or(u32::MAX)),
        );
    }
}
