//! What all of fuser's replies have in common.

use fuser::Errno;

/// A reply that can be an error.
pub(super) trait Refuse: Send + 'static {
    /// Answers with an errno.
    fn refuse(self, errno: i32);
}

macro_rules! refuse {
    ($($reply:ident),* $(,)?) => {
        $(impl Refuse for fuser::$reply {
            fn refuse(self, errno: i32) {
                self.error(Errno::from_i32(errno));
            }
        })*
    };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLock,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr,
);
