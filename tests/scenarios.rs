//! HTTP to a real process with real containers: what a user of the contract sees.

/// Makes a test of each function for each backend.
macro_rules! on_both {
    ($($name:ident,)*) => {
        mod embedded {
            super::super::on_both!(@on Embedded $($name)*);
        }
        mod google {
            super::super::on_both!(@on Google $($name)*);
        }
    };
    (@on $backend:ident $($name:ident)*) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            super::$name(crate::support::server::Backend::$backend).await;
        })*
    };
}
use on_both;

mod attempts;
mod backup;
mod cancel;
mod command_line;
mod database;
mod dead_letters;
mod disk;
mod drain;
mod faults;
mod files;
mod frozen;
mod google;
mod kept;
mod order;
mod overload;
mod preemption;
mod replies;
mod retention;
mod sandbox;
mod verdicts;
mod warm;
