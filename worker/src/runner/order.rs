//! The order of calls on a [`super::Sandbox`], policed once for every adapter.

use super::{Fault, FaultKind};

/// What has happened to one sandbox so far.
#[derive(Debug, Default)]
pub(crate) struct Order {
    sent: bool,
    /// Spoken to with `say`: another request may follow.
    said: bool,
    output_ended: bool,
    killed: bool,
    exited: bool,
}

fn misuse(sentence: &str) -> Fault {
    Fault::new(FaultKind::Misuse, sentence)
}

impl Order {
    /// Asks for `send`, and notes it.
    pub(crate) fn send(&mut self) -> Result<(), Fault> {
        if self.killed {
            return Err(misuse("`send` after `kill`"));
        }
        if std::mem::replace(&mut self.sent, true) {
            return Err(misuse("`send` twice: a container serves one request"));
        }
        Ok(())
    }

    /// Asks for `say`, and notes it.
    pub(crate) fn say(&mut self) -> Result<(), Fault> {
        if self.killed {
            return Err(misuse("`say` after `kill`"));
        }
        if self.sent && !self.said {
            return Err(misuse("`say` after `send`: standard input is closed"));
        }
        (self.sent, self.said) = (true, true);
        Ok(())
    }

    /// Asks for `freeze` or `thaw`.
    pub(crate) fn freeze(&self) -> Result<(), Fault> {
        if self.killed { Err(misuse("a killed container is neither frozen nor thawed")) } else { Ok(()) }
    }

    /// Asks for `next_output`.
    pub(crate) fn next_output(&self) -> Result<(), Fault> {
        if self.sent || self.killed { Ok(()) } else { Err(misuse("`next_output` before `send`")) }
    }

    /// Asks for `wait`.
    pub(crate) fn wait(&self) -> Result<(), Fault> {
        if self.output_ended || self.killed { Ok(()) } else { Err(misuse("`wait` before the end of the output")) }
    }

    /// Asks for `remove`.
    pub(crate) fn remove(&self) -> Result<(), Fault> {
        if self.exited || self.killed { Ok(()) } else { Err(misuse("`remove` of a container that may be alive")) }
    }

    /// No more output will come.
    pub(crate) const fn note_output_ended(&mut self) {
        self.output_ended = true;
    }

    /// The engine confirmed a kill.
    pub(crate) const fn note_killed(&mut self) {
        self.killed = true;
    }

    /// The exit is known.
    pub(crate) const fn note_exited(&mut self) {
        self.exited = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_drawn_order_is_allowed() {
        let mut order = Order::default();
        order.send().unwrap();
        order.next_output().unwrap();
        order.note_output_ended();
        order.next_output().unwrap();
        order.wait().unwrap();
        order.note_exited();
        order.wait().unwrap();
        order.remove().unwrap();
    }

    #[test]
    fn a_kill_is_allowed_at_any_time() {
        let mut order = Order::default();
        order.note_killed();
        order.next_output().unwrap();
        order.wait().unwrap();
        order.remove().unwrap();
        assert_eq!(order.send().unwrap_err().kind(), FaultKind::Misuse);
    }

    #[test]
    fn a_session_is_spoken_to_again_and_never_sent_to() {
        let mut order = Order::default();
        order.say().unwrap();
        order.next_output().unwrap();
        order.freeze().unwrap();
        order.say().unwrap();
        assert_eq!(order.send().unwrap_err().kind(), FaultKind::Misuse);
        order.note_killed();
        assert_eq!(order.say().unwrap_err().kind(), FaultKind::Misuse);
        assert_eq!(order.freeze().unwrap_err().kind(), FaultKind::Misuse);
        let mut order = Order::default();
        order.send().unwrap();
        assert_eq!(order.say().unwrap_err().kind(), FaultKind::Misuse);
    }

    #[test]
    fn another_order_is_misuse() {
        let mut order = Order::default();
        assert_eq!(order.next_output().unwrap_err().kind(), FaultKind::Misuse);
        assert_eq!(order.wait().unwrap_err().kind(), FaultKind::Misuse);
        assert_eq!(order.remove().unwrap_err().kind(), FaultKind::Misuse);
        order.send().unwrap();
        assert_eq!(order.send().unwrap_err().kind(), FaultKind::Misuse);
        assert_eq!(order.wait().unwrap_err().kind(), FaultKind::Misuse);
        order.note_output_ended();
        assert_eq!(order.remove().unwrap_err().kind(), FaultKind::Misuse);
    }
}
