//! Takes this machine into the cluster's Swarm, step by step.

use std::net::IpAddr;
use std::time::Duration;

use async_trait::async_trait;

use super::docker::{Docker, DockerError};
use super::rules::{self, Enrolled, Step, View};

/// Between two looks.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// So often it is looked again before it is given up: Swarm takes up to a minute to give a dead machine up, and Docker's daemons
/// may all be starting.
const LOOKS_MAX: u32 = 150;
/// So many steps that change something are more than any way to the end has.
const STEPS_MAX: u32 = 64;
/// So often it is tried to join.
const JOINS_MAX: u32 = 5;

/// The daemons of the cluster's nodes, this one's own among them.
#[async_trait]
pub trait Peers: Send + Sync {
    /// What each says of Swarm on its machine.
    async fn look(&self) -> Result<Vec<View>, String>;
    /// Has a node, whose machine manages the Swarm, remove a dead machine from it.
    async fn remove(&self, via: &str, node_id: &str) -> Result<(), String>;
}

/// While this lives, no other machine of the cluster joins or makes a Swarm.
pub trait Hold: Send {}

/// Where the cluster's Swarm is written down, once for all machines.
#[async_trait]
pub trait Register: Send + Sync {
    /// Waits until nobody else enrolls, and keeps others from it. Ends by itself with this process, and with this machine.
    async fn hold(&self) -> Result<Box<dyn Hold>, String>;
    /// Which one is the cluster's, if that is written down.
    fn recorded(&self) -> Result<Option<String>, String>;
    /// Writes it down, unless one is; returns which one is.
    fn record(&self, swarm_id: &str) -> Result<String, String>;
}

/// Why this machine is not in the Swarm.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrollError {
    /// Docker on this machine.
    #[error(transparent)]
    Docker(#[from] DockerError),
    /// It must not be done, or was waited for in vain; what to do.
    #[error("{0}")]
    Refused(String),
}

/// See the module.
pub struct Enroll<'a> {
    /// Docker here.
    pub docker: &'a dyn Docker,
    /// The cluster's daemons.
    pub peers: &'a dyn Peers,
    /// What is written down.
    pub register: &'a dyn Register,
    /// This machine's address in the Swarm.
    pub advertise: IpAddr,
    /// Tells the administrator.
    pub say: &'a (dyn Fn(&str) + Sync),
}

impl Enroll<'_> {
    /// Takes this machine in. Harmless to repeat.
    ///
    /// # Errors
    /// [`EnrollError`] says what to do.
    pub async fn run(&self) -> Result<Enrolled, EnrollError> {
        let refused = EnrollError::Refused;
        let _hold = self.register.hold().await.map_err(refused)?;
        let (mut told, mut looks, mut joins) = (String::new(), 0, 0);
        for _ in 0..STEPS_MAX {
            match self.next(&mut told, &mut looks).await? {
                Step::Done(enrolled) => return Ok(enrolled),
                Step::Join { .. } if joins == JOINS_MAX => {
                    return Err(refused("Docker does not join the Swarm; its log says why".into()));
                }
                step => {
                    joins += u32::from(matches!(step, Step::Join { .. }));
                    self.carry_out(step).await?;
                }
            }
        }
        Err(refused(
            "the Swarm changes all the time: repeat this command".into(),
        ))
    }

    /// What to do next, when it is something other than to wait.
    async fn next(&self, told: &mut String, looks: &mut u32) -> Result<Step, EnrollError> {
        loop {
            match self.look().await? {
                Step::Refuse(why) => return Err(EnrollError::Refused(why)),
                Step::Wait(why) => {
                    *looks += 1;
                    if *looks > LOOKS_MAX {
                        return Err(EnrollError::Refused(why));
                    }
                    if why != *told {
                        (self.say)(&format!("waiting: {why}"));
                        *told = why;
                    }
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
                step => return Ok(step),
            }
        }
    }

    async fn look(&self) -> Result<Step, EnrollError> {
        let own = match self.docker.own().await {
            Ok(own) => own,
            Err(error @ DockerError::Silent(..)) => return Ok(Step::Wait(error.to_string())),
            Err(error) => return Err(error.into()),
        };
        let recorded = self.register.recorded().map_err(EnrollError::Refused)?;
        let views = self.peers.look().await.map_err(EnrollError::Refused)?;
        Ok(rules::next_step(&own, recorded.as_deref(), &views))
    }

    async fn carry_out(&self, step: Step) -> Result<(), EnrollError> {
        let refused = EnrollError::Refused;
        match step {
            Step::Done(_) | Step::Wait(_) | Step::Refuse(_) => {}
            Step::Record(id) => {
                self.register.record(&id).map_err(refused)?;
            }
            Step::Make => self.make().await?,
            Step::Remove { via, dead } => {
                (self.say)(&format!(
                    "removing the dead {} ({}) from the Swarm, through {via}",
                    dead.hostname, dead.id
                ));
                self.peers.remove(&via, &dead.id).await.map_err(refused)?;
            }
            Step::Join {
                as_manager,
                managers,
                token,
            } => {
                let role = if as_manager { "manager" } else { "worker" };
                (self.say)(&format!(
                    "joining the Swarm as {role}, through {}",
                    managers.join(", ")
                ));
                let joined = self.docker.join(self.advertise, &managers, &token).await;
                // Docker may go on trying by itself: the next look shows it.
                if let Err(error) = joined {
                    (self.say)(&error.to_string());
                    tokio::time::sleep(LOOK_INTERVAL).await;
                }
            }
        }
        Ok(())
    }

    /// Makes a Swarm. If another was written down meanwhile, this one, which nobody has used, goes again.
    async fn make(&self) -> Result<(), EnrollError> {
        (self.say)("making a Swarm");
        self.docker.init(self.advertise).await?;
        let own = self.docker.own().await?;
        let id = own
            .swarm_id
            .ok_or_else(|| EnrollError::Refused("Docker has made a Swarm that it does not manage".into()))?;
        let recorded = self.register.record(&id).map_err(EnrollError::Refused)?;
        if recorded != id {
            (self.say)("another machine has made one meanwhile: leaving this one");
            self.docker.leave().await?;
        }
        Ok(())
    }
}
