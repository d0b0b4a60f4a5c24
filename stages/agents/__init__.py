"""Agents that learn online, behind `collect`: TD3 from states, Plan2Explore and Dreamer from pixels."""
