//! One host: brings what runs in line with what is recorded
