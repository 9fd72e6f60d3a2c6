//! The leader's end of a link for leases.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::BoxStream;
use raftstore::meta::NodeId;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::duties::Duties;
use super::lease_desk::{Hello, Link, ORDERS_MAX, Orders};
use crate::node::transport::lease_wire::{FromHolder, Said, ToHolder};
use crate::node::transport::wire::WireError;

/// A caller that takes longer to say what it holds is cut off.
const HELLO_TIMEOUT: Duration = Duration::from_secs(10);
/// Leases that a session may say it holds: more than it is let keep, since what it makes itself it just claims.
const HELLO_LEASES_MAX: usize = 1 << 20;

/// What a holder says.
pub type FromHolders = BoxStream<'static, Result<FromHolder, WireError>>;
/// What it is told.
pub type ToHolders = ReceiverStream<Result<ToHolder, WireError>>;

/// Serves a link to the node `caller` for as long as this node leads.
///
/// # Errors
/// [`WireError::NotLeader`], [`WireError::NotNow`].
pub fn serve(duties: &Arc<Duties>, caller: NodeId, said: FromHolders) -> Result<ToHolders, WireError> {
    duties.in_office()?;
    let (orders, told) = mpsc::channel(ORDERS_MAX);
    tokio::spawn(run(Arc::clone(duties), caller, said, orders));
    Ok(ReceiverStream::new(told))
}

async fn run(duties: Arc<Duties>, caller: NodeId, mut said: FromHolders, orders: Orders) {
    let link = match open(&duties, caller, &mut said, &orders).await {
        Ok(link) => link,
        Err(error) => {
            let _ = orders.try_send(Err(error));
            return;
        }
    };
    let end = tokio::select! {
        () = link.ended.cancelled() => Ok(()),
        () = orders.closed() => Ok(()),
        end = hear(&duties, &link, &mut said) => end,
    };
    duties.leases().closed(&link);
    if let Err(error) = end {
        tracing::debug!(%error, caller, "a link for leases ends");
        let _ = orders.try_send(Err(error));
    }
}

async fn open(
    duties: &Duties,
    caller: NodeId,
    said: &mut FromHolders,
    orders: &Orders,
) -> Result<Link, WireError> {
    let hello = tokio::time::timeout(HELLO_TIMEOUT, hello(said)).await;
    let hello = hello.map_err(|_| WireError::NotNow("what is held was not said in time".into()))??;
    duties.in_office()?;
    duties.leases().hello(caller, hello, orders.clone())
}

/// Puts the parts together.
async fn hello(said: &mut FromHolders) -> Result<Hello, WireError> {
    let malformed = |why: &str| Err(WireError::Malformed(why.to_owned()));
    let mut all = Vec::new();
    while let Some(part) = said.next().await {
        let part = part?;
        let Said::Hello { session, held, last } = part.said else {
            return malformed("a link for leases has to begin with what is held");
        };
        all.extend(held);
        if all.len() > HELLO_LEASES_MAX {
            return malformed("too many leases are held");
        }
        if last {
            let log_index = part.log_index;
            return Ok(Hello {
                session,
                held: all,
                log_index,
            });
        }
    }
    malformed("a link for leases ended before it was said what is held")
}

async fn hear(duties: &Duties, link: &Link, said: &mut FromHolders) -> Result<(), WireError> {
    while let Some(from) = said.next().await {
        let FromHolder { log_index, said } = from?;
        duties.in_office()?;
        let Said::Message { message, grants_seen } = said else {
            return Err(WireError::Malformed("a second hello on one link".into()));
        };
        duties.leases().heard(link, log_index, message, grants_seen)?;
    }
    Ok(())
}
