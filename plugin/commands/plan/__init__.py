"""`main.py plan`: runs planned before they are paid for, and laws fitted to those that ended."""
