"""Observes and acts: kopf, the API, the agents, the clock. Holds no decision; what to do is `core.decide`'s answer.

Everything runs in one event loop (asyncio); each job has one task, so a job is never reconciled twice at the same time.
"""
