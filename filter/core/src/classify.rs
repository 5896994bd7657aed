//! Classification: which class and tenant a request has.
